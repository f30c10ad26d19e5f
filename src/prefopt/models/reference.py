"""The store of reference log-probs, computed once per model and tokenised pair, and shared by all runs.

A store is a folder of shards. A shard is written once, as a whole, and named by the SHA-256 of its content, so writers
never collide and damage shows. A record holds the log-prob of every token of one completion. Its key depends on the
token ids only; the folder's name depends on the model. Learning rate, beta, loss, seed, adapters, batch size and
output folder affect neither, so no two runs compute the same record twice.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from transformers import AutoTokenizer

from prefopt.config.choices import PeftMethod, ReferenceMode
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.data.ragged import PairLogps, PairTable
from prefopt.distributed.group import barrier, gather, num_ranks, on_main, raise_on_all
from prefopt.models.fingerprint import fingerprint_weights
from prefopt.models.load import count_tokens, from_pretrained
from prefopt.models.lookup import Lookup, StoredLogps
from prefopt.models.shards import FORMAT, SHARD, MappedShard, Rows, Shard, map_sound
from prefopt.process.errors import UserError
from prefopt.process.paths import cache_folder, expand
from prefopt.storage.files import write_bytes, write_json
from prefopt.storage.sealed import remove_stale

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CHUNK_PAIRS = 256
"""Pairs that are computed between two looks for records that other processes have stored."""
FLUSH_S = 5.0
"""Seconds of computing after which results are stored: a kill loses at most this much."""
VISIBLE_S = 60.0
"""Seconds after which a rank sees what another one has written, at most, on a network file system."""

Compute = Callable[[PairTable, Rows], Iterator[tuple[Rows, PairLogps]]]
Progress = Callable[[int, int], None]


@dataclass
class Usage:
    """Statistics of one request to a store.

    Attributes:
        num_pairs: Pairs that were requested.
        num_rows: Pairs of the data, whether requested or not.
        num_stored: Requested pairs that were stored already.
        num_computed: Pairs computed for this request, with those that share a forward with a requested one; other
            runs may have computed the rest meanwhile.
        computed_s: Seconds spent on computing.
        saved_s: Seconds that the stored pairs took when they were computed.
    """

    num_pairs: int = 0
    num_rows: int = 0
    num_stored: int = 0
    num_computed: int = 0
    computed_s: float = 0.0
    saved_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the requested pairs that were stored already."""
        return self.num_stored / self.num_pairs if self.num_pairs else 1.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hit_rate": self.hit_rate}

    def __str__(self) -> str:
        is_whole = self.num_pairs == self.num_rows
        need = "" if is_whole else f"this run needs {self.num_pairs} of {self.num_rows} rows; "
        return (
            f"{need}{self.num_stored} of {self.num_pairs} pairs from the store ({self.hit_rate:.1%}), "
            f"{self.num_computed} computed in {self.computed_s:.1f} s, {self.saved_s:.1f} s saved"
        )


NUMERICS = ("tf32",)
"""Fields of `trainer.extra` that change log-probs."""
BATCH_DEPENDENT_ROPE = {"longrope", "dynamic"}
"""Rotary embeddings whose frequencies depend on the longest sequence of the batch."""


def open_store(config: TrainConfig, *, casts_weights: bool = False) -> "ReferenceStore | None":
    """Returns the store for the reference of this run; None if the configuration uses none.

    Args:
        config: Settings of the run, with model and precision.
        casts_weights: Whether DeepSpeed holds the weights in bf16, instead of computing in bf16 with fp32 weights.

    Raises:
        UserError: The model's files cannot be found.
    """
    if config.reference.mode is not ReferenceMode.store:
        return None
    root = config.reference.path
    return ReferenceStore.open(
        expand(root) if root else cache_folder() / "reference",
        {
            "format": FORMAT,
            "weights": on_main(lambda: fingerprint_weights(config.model)),
            "dtype": config.model.dtype.value,
            "precision": config.trainer.precision.value,
            "quantised": config.peft.method is PeftMethod.qlora,
            "casts_weights": casts_weights,
            **_resized(config.model),
            "numerics": {name: config.trainer.extra[name] for name in NUMERICS if name in config.trainer.extra},
            "attention": config.model.attn_implementation,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "transformers": ".".join(version("transformers").split(".")[:2]),
        },
    )


def _resized(config: ModelConfig) -> dict[str, int]:
    """Returns the key's entry for a resized embedding: its new rows change every probability."""
    return {"tokens": count_tokens(from_pretrained(AutoTokenizer, config))} if config.resize_embeddings else {}


def check_independence(model_config: "PreTrainedConfig", max_length: int) -> None:
    """Refuses models whose log-probs of a pair depend on the other pairs of its batch.

    Raises:
        UserError: Pairs may be longer than the length above which such a model changes all frequencies.
    """
    config = model_config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in BATCH_DEPENDENT_ROPE:
        return
    limit = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    limit = limit or config.max_position_embeddings
    if max_length > limit:
        raise UserError(
            f"reference=store: with {rope['rope_type']} rotary embeddings a pair's log-probs depend on the longest "
            f"one of its batch above {limit} tokens, and data.max_length is {max_length}. Set reference=live, or "
            f"data.max_length={limit}."
        )


@dataclass
class ReferenceStore:
    """The stored reference log-probs of one model.

    Attributes:
        folder: Folder of the shards, and of `key.json`, which describes the model for users.
        key: Everything besides the token ids that decides a log-prob.
    """

    folder: Path
    key: dict[str, Any]
    _shards: dict[str, MappedShard] = field(default_factory=dict, repr=False)
    """The sound shards that were read so far, by file name."""

    @classmethod
    def open(cls, root: Path, key: dict[str, object]) -> "ReferenceStore":
        """Returns the store under `root` for a key; nothing is read or written yet."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(root / name[:32], key)

    def complete(
        self,
        table: PairTable,
        compute: Compute,
        on_progress: Progress | None = None,
        *,
        rows: Rows | None = None,
        batch_size: int = 1,
    ) -> tuple[StoredLogps, Usage]:
        """Returns the log-probs of pairs, computing and storing those that are missing.

        A forward of the pass over all pairs is computed whole or not at all: rounding differs by what else is in a
        batch, and so no pair's log-probs depend on whether the pass is made at once or as runs need it.

        Args:
            table: Token ids of the pairs.
            compute: Yields batches of the given rows with their log-probs, in any order.
            on_progress: Called with the number of pairs done and of pairs to compute.
            rows: The pairs that are needed, without repetition; None: all. Others cannot be read from the result.
            batch_size: Pairs in a forward of `compute`; only of effect with `rows`.

        Raises:
            UserError: The folder cannot be written.
        """
        chunks = _cut(table)
        if rows is None:
            rows, batch_size = np.arange(len(table)), CHUNK_PAIRS
        else:
            is_needed = _mark(table, rows)
            chunks = [chunk for chunk in chunks if is_needed[chunk].any()]
        lookup = self._look_up(table, np.concatenate([*chunks, rows[:0]]))
        missing = on_main(lambda: lookup.is_missing(rows))
        stored = rows[~missing]
        usage = Usage(num_pairs=len(rows), num_rows=len(table), num_stored=len(stored))
        usage.saved_s = lookup.seconds(stored)
        if missing.any():
            raise_on_all(_problem_of(self._prepare))
            is_needed = _mark(table, rows[missing])
            work = on_main(lambda: _plan(chunks, lookup, is_needed, batch_size))
            self._fill(table, lookup, work, compute, usage, on_progress)
            _add_others(usage)
        self._require(lookup, rows)
        return lookup.logps(rows), usage

    def check(self, needs: Iterable[tuple[PairTable, Rows | None]]) -> None:
        """Refuses a folder that cannot be written, unless it holds the records of these rows of the tables."""
        try:
            self._prepare()
        except UserError:
            for table, rows in needs:
                rows = np.arange(len(table)) if rows is None else rows
                if self._look_up(table, rows).is_missing(rows).any():
                    raise

    def _look_up(self, table: PairTable, rows: Rows) -> Lookup:
        """Returns where the stored records of `rows` lie."""
        lookup = Lookup(table, rows)
        for name in sorted(self._shards):
            lookup.add(self._shards[name])
        self._refresh(lookup)
        return lookup

    def _fill(
        self,
        table: PairTable,
        lookup: Lookup,
        work: list[Rows],
        compute: Compute,
        usage: Usage,
        on_progress: Progress | None,
    ) -> None:
        """Computes chunk by chunk, and skips pairs that other processes have stored meanwhile.

        Each run starts at a random chunk. Ranks compute a chunk together; a write error of one is raised on all when
        it is done.
        """
        num_rows = sum(map(len, work))
        first = on_main(lambda: random.SystemRandom().randrange(len(work)))
        shard = Shard()
        problem: UserError | None = None

        def flush() -> None:
            nonlocal shard, problem
            try:
                shard = shard if problem else self._write(shard, lookup, usage)
            except UserError as error:
                problem = error

        try:
            for chunk in work[first:] + work[:first]:
                begun = time.monotonic()
                for rows, logps in compute(table, on_main(partial(self._still_missing, lookup, chunk))):
                    shard.take(lookup.keys(rows), rows, logps)
                    usage.num_computed += len(rows)
                    shard.seconds += time.monotonic() - begun
                    if shard.seconds > FLUSH_S:
                        flush()
                    if on_progress is not None:
                        on_progress(min(usage.num_computed * num_ranks(), num_rows), num_rows)
                    begun = time.monotonic()
                raise_on_all(problem)
        finally:
            flush()
        raise_on_all(problem)

    def _require(self, lookup: Lookup, rows: Rows) -> None:
        """Finds the records that other ranks have stored too; raises on all ranks if one of them lacks a record."""
        self._refresh(lookup)
        end = time.monotonic() + VISIBLE_S
        while num_ranks() > 1 and lookup.is_missing(rows).any() and time.monotonic() < end:
            time.sleep(1)
            self._refresh(lookup)
        num_lost = np.count_nonzero(lookup.is_missing(rows))
        barrier()
        problem = UserError(
            f"{self.folder}: the log-probs of {num_lost} pairs were stored here and cannot be read again. Run the "
            "same command again; if this comes back, name another folder in reference.path."
        )
        raise_on_all(problem if num_lost else None)

    def _still_missing(self, lookup: Lookup, rows: Rows) -> Rows:
        """Returns those of `rows` that no process has stored meanwhile."""
        self._refresh(lookup)
        return rows[lookup.is_missing(rows)]

    def _refresh(self, lookup: Lookup) -> None:
        """Reads the shards that have appeared since the last look."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            shard = None if path.name in self._shards else map_sound(path)
            if shard is not None:
                self._shards[path.name] = shard
                lookup.add(shard)

    def _prepare(self) -> None:
        """Creates the folder, and removes half-written files of killed processes."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").is_file():
                write_json(self.folder / "key.json", self.key)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("not writable")
            remove_stale(self.folder)

    def _write(self, shard: Shard, lookup: Lookup, usage: Usage) -> Shard:
        """Writes a shard to the folder, and returns a new empty one."""
        usage.computed_s += shard.seconds
        if shard.keys:
            packed = save(shard.content())
            with self._writing():
                write_bytes(self.folder / (hashlib.sha256(packed).hexdigest() + SHARD), packed)
            self._refresh(lookup)
        return Shard()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an OSError in the block into a UserError that says what to do."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder}: reference log-probs cannot be stored here ({error.strerror or error}). Free space or "
                "name another folder in reference.path, or set reference=live to compute them in every step."
            ) from error


def _problem_of(action: Callable[[], None]) -> UserError | None:
    try:
        action()
    except UserError as error:
        return error
    return None


def _add_others(usage: Usage) -> None:
    """Waits for the other ranks, and adds what they computed."""
    everyone = gather(usage)
    usage.num_computed = sum(other.num_computed for other in everyone)
    usage.computed_s = max(other.computed_s for other in everyone)


def _mark(table: PairTable, rows: Rows) -> NDArray[np.bool_]:
    """Returns for each pair of a table whether it is one of `rows`."""
    marked = np.zeros(len(table), dtype=bool)
    marked[rows] = True
    return marked


def _cut(table: PairTable) -> list[Rows]:
    """Returns the pairs in chunks, longest first. They are cut from the whole table, whatever is stored of it."""
    order = np.argsort(-table.lengths.sum(axis=1), kind="stable")
    return [order[start : start + CHUNK_PAIRS] for start in range(0, len(order), CHUNK_PAIRS)]


def _plan(chunks: list[Rows], lookup: Lookup, is_needed: NDArray[np.bool_], batch_size: int) -> list[Rows]:
    """Returns what is to be computed of each chunk: the batches of what it lacks in which a needed pair is."""
    work = []
    for chunk in chunks:
        lacking = chunk[lookup.is_missing(chunk)]
        batches = [lacking[start : start + batch_size] for start in range(0, len(lacking), batch_size)]
        work.append(np.concatenate([lacking[:0], *(batch for batch in batches if is_needed[batch].any())]))
    return [rows for rows in work if len(rows)]
