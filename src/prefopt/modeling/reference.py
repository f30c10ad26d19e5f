"""Reference log-probs, computed once per model and tokenised pair, and shared by every run on them.

A store is a folder of shards. A shard is written once, whole, and is named by the SHA-256 of its content, so writers
never collide and a damaged shard is known by its name. A record is the log-prob of every token of one completion,
under a key of the token ids alone; what the model is stands in the folder's name. Learning rate, beta, loss, seed,
adapters, batch size and output folder are in neither, so no two runs compute the same record twice.
"""

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prefopt.choices import PeftMethod, ReferenceMode
from prefopt.data.ragged import Array, PairLogps, PairTable, Ragged
from prefopt.errors import UserError
from prefopt.files import PARTIAL, write_bytes, write_json
from prefopt.modeling.fingerprint import fingerprint_weights
from prefopt.paths import cache_folder
from prefopt.schema import TrainConfig

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the shards and of what goes into a key."""
SHARD = ".safetensors"
DAMAGED = ".damaged"
KEY_BYTES = 16
CHUNK_PAIRS = 1024
"""Pairs between two looks at what other processes have stored meanwhile."""
FLUSH_S = 20.0
"""Seconds of computing that a kill can cost."""
STALE_S = 3600.0
"""Age at which a half-written file is taken for the leftover of a killed process."""

Rows = NDArray[np.int64]
Compute = Callable[[PairTable, Rows], Iterator[tuple[Rows, PairLogps]]]
Progress = Callable[[int, int], None]


@dataclass
class Usage:
    """What a store did for one request.

    Attributes:
        num_pairs: Pairs that were asked for.
        num_stored: Of these, how many were there already.
        num_computed: Pairs computed by this process; others may have computed the rest meanwhile.
        computed_s: Seconds spent on computing.
        saved_s: Seconds that computing the stored ones took, when they were computed.
    """

    num_pairs: int = 0
    num_stored: int = 0
    num_computed: int = 0
    computed_s: float = 0.0
    saved_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the pairs that were there already."""
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


def open_store(config: TrainConfig) -> "ReferenceStore | None":
    """The store for the reference of this run, or None where the configuration wants none.

    Raises:
        UserError: The model's files cannot be found.
    """
    if config.reference.mode is not ReferenceMode.store:
        return None
    root = config.reference.path
    return ReferenceStore.open(
        Path(root).expanduser() if root else cache_folder() / "reference",
        {
            "format": FORMAT,
            "weights": fingerprint_weights(config.model),
            "dtype": config.model.dtype.value,
            "precision": config.trainer.precision.value,
            "quantised": config.peft.method is PeftMethod.qlora,
            "attention": config.model.attn_implementation,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "transformers": ".".join(version("transformers").split(".")[:2]),
        },
    )


@dataclass
class ReferenceStore:
    """The records of one model.

    Attributes:
        folder: Holds the shards, and `key.json`, which says for people what the model is.
        key: What decides a log-prob besides the token ids.
    """

    folder: Path
    key: dict[str, Any]
    _index: dict[bytes, tuple[int, int]] = field(default_factory=dict, repr=False)
    _shards: list[tuple[Ragged, float]] = field(default_factory=list, repr=False)
    _seen: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, root: Path, key: dict[str, Any]) -> "ReferenceStore":
        """The store under `root` for a model; nothing is read or written yet."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(root / name[:32], key)

    def complete(
        self, table: PairTable, compute: Compute, on_progress: Progress | None = None
    ) -> tuple[PairLogps, Usage]:
        """Returns the log-probs of all pairs, computing and storing those that are missing.

        Args:
            table: Token ids of the pairs.
            compute: Yields batches of the given rows with their log-probs, in any order.
            on_progress: Called with the number of pairs done and to do.

        Raises:
            UserError: The folder cannot be written.
        """
        keys = _keys(table)
        self._refresh()
        missing = self._missing(keys)
        usage = Usage(num_pairs=len(table), num_stored=len(table) - len(missing))
        usage.saved_s = self._seconds(keys, np.setdiff1d(np.arange(len(table)), missing))
        if len(missing):
            self._prepare()
            self._fill(table, keys, missing, compute, usage, on_progress)
        logps = PairLogps(*(Ragged.of([self._record(key) for key in side], np.float32) for side in keys))
        _require_lengths(logps, table)
        return logps, usage

    def _fill(
        self,
        table: PairTable,
        keys: tuple[list[bytes], list[bytes]],
        missing: Rows,
        compute: Compute,
        usage: Usage,
        on_progress: Progress | None,
    ) -> None:
        """Computes chunk by chunk, each process from another one on, and skips what others stored meanwhile.

        Chunks are cut from the whole table, so a pair shares its batch with the same others after a kill as before.
        """
        order = np.argsort(-table.lengths.sum(axis=1), kind="stable")
        chunks = [order[start : start + CHUNK_PAIRS] for start in range(0, len(order), CHUNK_PAIRS)]
        chunks = [chunk for chunk in chunks if np.isin(chunk, missing).any()]
        first = random.SystemRandom().randrange(len(chunks))
        shard = _Shard()
        for chunk in chunks[first:] + chunks[:first]:
            self._refresh()
            begun = time.monotonic()
            for rows, logps in compute(table, self._missing(keys, chunk)):
                for place, row in enumerate(rows):
                    shard.add(keys[0][row], logps.chosen[place])
                    shard.add(keys[1][row], logps.rejected[place])
                usage.num_computed += len(rows)
                shard.seconds += time.monotonic() - begun
                if shard.seconds > FLUSH_S:
                    shard = self._write(shard, usage)
                if on_progress is not None:
                    on_progress(usage.num_computed, len(missing))
                begun = time.monotonic()
        self._write(shard, usage)

    def _refresh(self) -> None:
        """Reads the shards that have appeared since the last look."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            if path.name in self._seen:
                continue
            content = _read_sound(path)
            if content is not None:
                self._seen.add(path.name)
                self._add(content)

    def _add(self, content: dict[str, Array]) -> None:
        rows = Ragged(content["logps"], np.concatenate([[0], np.cumsum(content["lengths"], dtype=np.int64)]))
        tokens = max(1, len(rows.values))
        self._shards.append((rows, float(content["seconds"][0]) / tokens))
        for place, key in enumerate(content["keys"]):
            self._index[key.tobytes()] = (len(self._shards) - 1, place)

    def _missing(self, keys: tuple[list[bytes], list[bytes]], rows: Rows | None = None) -> Rows:
        candidates = np.arange(len(keys[0])) if rows is None else rows
        here = self._index
        return np.array([r for r in candidates if keys[0][r] not in here or keys[1][r] not in here], dtype=np.int64)

    def _record(self, key: bytes) -> Array:
        shard, place = self._index[key]
        return self._shards[shard][0][place]

    def _seconds(self, keys: tuple[list[bytes], list[bytes]], rows: Rows) -> float:
        total = 0.0
        for row in rows:
            for side in keys:
                shard, place = self._index[side[row]]
                logps, per_token = self._shards[shard]
                total += per_token * len(logps[place])
        return total

    def _prepare(self) -> None:
        """Makes the folder, and clears what killed processes left half-written."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").is_file():
                write_json(self.folder / "key.json", self.key)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("not writable")
            for path in self.folder.glob(f"*{PARTIAL}"):
                with suppress(FileNotFoundError):  # its writer has finished
                    if time.time() - path.stat().st_mtime > STALE_S:
                        path.unlink()

    def _write(self, shard: "_Shard", usage: Usage) -> "_Shard":
        """Stores what was computed and returns an empty shard."""
        usage.computed_s += shard.seconds
        if shard.keys:
            content = shard.content()
            packed = save(content)
            name = hashlib.sha256(packed).hexdigest() + SHARD
            with self._writing():
                write_bytes(self.folder / name, packed)
            self._seen.add(name)
            self._add(content)
        return _Shard()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the file system refuses into an error that says what to do."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder}: reference log-probs cannot be stored here ({error.strerror or error}). Free space or "
                "name another folder in reference.path, or set reference=live to compute them in every step."
            ) from error


@dataclass
class _Shard:
    """Records that are not on disk yet."""

    keys: list[bytes] = field(default_factory=list)
    records: list[Array] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, key: bytes, record: Array) -> None:
        self.keys.append(key)
        self.records.append(record)

    def content(self) -> dict[str, Array]:
        rows = Ragged.of(self.records, np.float32)
        return {
            "keys": np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(-1, KEY_BYTES),
            "lengths": rows.lengths.astype(np.int32),
            "logps": rows.values,
            "seconds": np.array([self.seconds]),
        }


def _keys(table: PairTable) -> tuple[list[bytes], list[bytes]]:
    """Digests of (prompt, completion), for the chosen and the rejected completions."""
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for row in range(len(table)):
        prompt = hashlib.sha256(np.int64(len(table.prompt[row])).tobytes() + table.prompt[row].tobytes())
        for side, completions in zip(sides, (table.chosen, table.rejected), strict=True):
            digest = prompt.copy()
            digest.update(completions[row].tobytes())
            side.append(digest.digest()[:KEY_BYTES])
    return sides


def _read_sound(path: Path) -> dict[str, Array] | None:
    """Reads a shard; a damaged one is set aside with a warning, and its records are computed again."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None  # set aside by another process
    if hashlib.sha256(packed).hexdigest() == path.name.removesuffix(SHARD):
        try:
            content: dict[str, Array] = load(packed)
            return content
        except SafetensorError as error:
            reason = str(error)
    else:
        reason = "its content does not match its name"
    logger.warning("reference: %s is damaged (%s); what it held is computed again", path, reason)
    try:
        path.rename(path.with_name(path.name + DAMAGED))
    except OSError as error:
        logger.warning("reference: %s cannot be set aside (%s)", path, error)
    return None


def _require_lengths(logps: PairLogps, table: PairTable) -> None:
    for found, expected in ((logps.chosen, table.chosen), (logps.rejected, table.rejected)):
        assert (found.lengths == expected.lengths).all(), "a record has another length than its completion"
