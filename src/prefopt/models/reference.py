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
from safetensors.numpy import save
from transformers import AutoTokenizer

from prefopt.config.choices import PeftMethod, ReferenceMode
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.data.ragged import Array, PairLogps, PairTable, Ragged
from prefopt.distributed.group import gather, num_ranks, on_main, raise_on_all
from prefopt.models.fingerprint import fingerprint_weights
from prefopt.models.load import count_tokens, from_pretrained
from prefopt.models.shards import FORMAT, SHARD, Keys, Rows, Shard, keys_of, read_sound
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

Compute = Callable[[PairTable, Rows], Iterator[tuple[Rows, PairLogps]]]
Progress = Callable[[int, int], None]


@dataclass
class Usage:
    """Statistics of one request to a store.

    Attributes:
        num_pairs: Pairs that were requested.
        num_stored: Requested pairs that were stored already.
        num_computed: Pairs computed for this request; other runs may have computed the rest meanwhile.
        computed_s: Seconds spent on computing.
        saved_s: Seconds that the stored pairs took when they were computed.
    """

    num_pairs: int = 0
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
        return (
            f"{self.num_stored} of {self.num_pairs} pairs from the store ({self.hit_rate:.1%}), "
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
    _index: dict[bytes, tuple[Array, float]] = field(default_factory=dict, repr=False)
    _wanted: set[bytes] = field(default_factory=set, repr=False)
    _seen: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, root: Path, key: dict[str, object]) -> "ReferenceStore":
        """Returns the store under `root` for a key; nothing is read or written yet."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(root / name[:32], key)

    def complete(
        self, table: PairTable, compute: Compute, on_progress: Progress | None = None
    ) -> tuple[PairLogps, Usage]:
        """Returns the log-probs of all pairs, computing and storing those that are missing.

        Args:
            table: Token ids of the pairs.
            compute: Yields batches of the given rows with their log-probs, in any order.
            on_progress: Called with the number of pairs done and of pairs to compute.

        Raises:
            UserError: The folder cannot be written.
        """
        keys = keys_of(table)
        self._begin(keys)
        missing = on_main(lambda: self._missing(keys))
        usage = Usage(num_pairs=len(table), num_stored=len(table) - len(missing))
        usage.saved_s = self._seconds(keys, np.setdiff1d(np.arange(len(table)), missing))
        if len(missing):
            raise_on_all(_problem_of(self._prepare))
            self._fill(table, keys, missing, compute, usage, on_progress)
            self._share(usage)
        logps = PairLogps(*(Ragged.of([self._record(key) for key in side], np.float32) for side in keys))
        _require_lengths(logps, table)
        self._index.clear()
        return logps, usage

    def check(self, tables: Iterable[PairTable]) -> None:
        """Refuses a folder that cannot be written, unless it holds the records of all these pairs."""
        try:
            self._prepare()
        except UserError:
            for table in tables:
                keys = keys_of(table)
                self._begin(keys)
                if len(self._missing(keys)):
                    raise

    def _begin(self, keys: Keys) -> None:
        """Loads the stored records of these keys; other records are not kept in memory."""
        self._seen.clear()
        self._wanted = {key for side in keys for key in side}
        self._index.clear()
        self._refresh()

    def _fill(
        self,
        table: PairTable,
        keys: Keys,
        missing: Rows,
        compute: Compute,
        usage: Usage,
        on_progress: Progress | None,
    ) -> None:
        """Computes chunk by chunk, and skips pairs that other processes have stored meanwhile.

        Each run starts at a random chunk. Chunks are cut from the whole table, so that a pair has the same batch after
        a kill as before. Ranks compute a chunk together; a write error of one is raised on all when it is done.
        """
        order = np.argsort(-table.lengths.sum(axis=1), kind="stable")
        chunks = [order[start : start + CHUNK_PAIRS] for start in range(0, len(order), CHUNK_PAIRS)]
        is_missing = np.zeros(len(table), dtype=bool)
        is_missing[missing] = True
        chunks = [chunk for chunk in chunks if is_missing[chunk].any()]
        first = on_main(lambda: random.SystemRandom().randrange(len(chunks)))
        shard = Shard()
        problem: UserError | None = None

        def flush() -> None:
            nonlocal shard, problem
            try:
                shard = shard if problem else self._write(shard, usage)
            except UserError as error:
                problem = error

        try:
            for chunk in chunks[first:] + chunks[:first]:
                begun = time.monotonic()
                for rows, logps in compute(table, on_main(partial(self._still_missing, keys, chunk))):
                    shard.take(keys, rows, logps)
                    usage.num_computed += len(rows)
                    shard.seconds += time.monotonic() - begun
                    if shard.seconds > FLUSH_S:
                        flush()
                    if on_progress is not None:
                        on_progress(min(usage.num_computed * num_ranks(), len(missing)), len(missing))
                    begun = time.monotonic()
                raise_on_all(problem)
        finally:
            flush()
        raise_on_all(problem)

    def _share(self, usage: Usage) -> None:
        """Waits for the other ranks, adds their statistics to `usage`, and reads the records that they stored."""
        everyone = gather(usage)
        usage.num_computed = sum(other.num_computed for other in everyone)
        usage.computed_s = max(other.computed_s for other in everyone)
        self._refresh()

    def _still_missing(self, keys: Keys, rows: Rows) -> Rows:
        """Returns those of `rows` that no process has stored meanwhile."""
        self._refresh()
        return self._missing(keys, rows)

    def _refresh(self) -> None:
        """Reads the shards that have appeared since the last look."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            if path.name in self._seen:
                continue
            content = read_sound(path)
            if content is not None:
                self._seen.add(path.name)
                self._add(content)

    def _add(self, content: dict[str, Array]) -> None:
        rows = Ragged(content["logps"], np.concatenate([[0], np.cumsum(content["lengths"], dtype=np.int64)]))
        per_token = float(content["seconds"][0]) / max(1, len(rows.values))
        for place, packed in enumerate(content["keys"]):
            key = packed.tobytes()
            if key in self._wanted:
                self._index[key] = rows[place].copy(), per_token * len(rows[place])

    def _missing(self, keys: Keys, rows: Rows | None = None) -> Rows:
        candidates = np.arange(len(keys[0])) if rows is None else rows
        here = self._index
        return np.array([r for r in candidates if keys[0][r] not in here or keys[1][r] not in here], dtype=np.int64)

    def _record(self, key: bytes) -> Array:
        return self._index[key][0]

    def _seconds(self, keys: Keys, rows: Rows) -> float:
        return sum(self._index[side[row]][1] for row in rows for side in keys)

    def _prepare(self) -> None:
        """Creates the folder, and removes half-written files of killed processes."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").is_file():
                write_json(self.folder / "key.json", self.key)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("not writable")
            remove_stale(self.folder)

    def _write(self, shard: Shard, usage: Usage) -> Shard:
        """Writes a shard to the folder, and returns a new empty one."""
        usage.computed_s += shard.seconds
        if shard.keys:
            content = shard.content()
            packed = save(content)
            name = hashlib.sha256(packed).hexdigest() + SHARD
            with self._writing():
                write_bytes(self.folder / name, packed)
            self._seen.add(name)
            self._add(content)
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


def _require_lengths(logps: PairLogps, table: PairTable) -> None:
    for found, expected in ((logps.chosen, table.chosen), (logps.rejected, table.rejected)):
        assert (found.lengths == expected.lengths).all(), "a record has another length than its completion"
