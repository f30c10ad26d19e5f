"""Shards of a store of reference log-probs: their records, their keys, and the check for damage."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefopt.data.ragged import Array, PairLogps, PairTable, Ragged
from prefopt.process.errors import UserError
from prefopt.storage.reading import open_file, parse_json
from prefopt.storage.sealed import DAMAGED, set_aside

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the format of shards and keys."""
SHARD = ".safetensors"
KEY_BYTES = 16
DTYPES = {"U8": np.uint8, "I32": np.int32, "F32": np.float32, "F64": np.float64}
"""Names in a safetensors file of the types that shards hold."""

Rows = NDArray[np.int64]
Keys = NDArray[np.uint8]
"""Keys of the chosen and the rejected completions of some pairs, shape (pairs, 2, KEY_BYTES)."""


@dataclass
class Shard:
    """Records that are not on disk yet: one completion's log-probs per key."""

    keys: list[Keys] = field(default_factory=list)
    records: list[Array] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, keys: Keys, rows: Rows, logps: PairLogps) -> None:
        """Adds the records of the chosen and rejected completions of `rows`; all arguments have the same order.

        Raises:
            UserError: A log-prob is not finite.
        """
        _require_finite(rows, logps)
        self.keys.append(keys)
        for place in range(len(rows)):
            self.records += [logps.chosen[place], logps.rejected[place]]

    def content(self) -> dict[str, Array]:
        rows = Ragged.of(self.records, np.float32)
        return {
            "keys": np.concatenate(self.keys).reshape(-1, KEY_BYTES),
            "lengths": rows.lengths.astype(np.int32),
            "logps": rows.values,
            "seconds": np.array([self.seconds]),
        }


@dataclass(frozen=True)
class MappedShard:
    """A sound shard on disk, memory-mapped: its arrays take no memory of this process's own.

    Attributes:
        keys: Key of each record, shape (records, KEY_BYTES).
        lengths: Number of tokens of each record, shape (records,).
        logps: Log-probs of all records, one after another.
        seconds: How long computing them took.
    """

    keys: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    logps: NDArray[np.float32]
    seconds: float

    @classmethod
    def of(cls, path: Path) -> "MappedShard":
        """Returns the shard in a safetensors file, whose own reader would copy every array.

        Raises:
            OSError: It cannot be mapped.
            ValueError, KeyError, TypeError: It holds something else.
        """
        with pa.memory_map(str(path)) as file:  # unlike Python's own mapping, this one needs no open file afterwards
            content = file.read_buffer()
        start = 8 + int.from_bytes(content[:8].to_pybytes(), "little")
        header = parse_json(content[8:start].to_pybytes())

        def view(name: str) -> Any:
            first, end = header[name]["data_offsets"]
            dtype = np.dtype(DTYPES[header[name]["dtype"]])
            flat = np.frombuffer(content, dtype, (end - first) // dtype.itemsize, start + first)
            return flat.reshape(header[name]["shape"])

        shard = cls(view("keys"), view("lengths"), view("logps"), float(view("seconds")[0]))
        if shard.keys.shape != (len(shard.lengths), KEY_BYTES) or shard.lengths.sum() != len(shard.logps):
            raise ValueError("its arrays do not fit each other")
        return shard


def keys_of(table: PairTable, rows: Rows) -> Keys:
    """Returns digests of (prompt, completion) for the chosen and the rejected completions of some rows."""
    found = bytearray(len(rows) * 2 * KEY_BYTES)
    end = 0
    for row in rows.tolist():
        ids = table.prompt[row]
        prompt = hashlib.sha256(len(ids).to_bytes(8, "little"))
        prompt.update(ids.data)
        for completions in (table.chosen, table.rejected):
            digest = prompt.copy()
            digest.update(completions[row].data)
            end += KEY_BYTES
            found[end - KEY_BYTES : end] = digest.digest()[:KEY_BYTES]
    return np.frombuffer(found, np.uint8).reshape(len(rows), 2, KEY_BYTES)


def map_sound(path: Path) -> MappedShard | None:
    """Maps a shard into memory after checking all of it; None if it is unreadable or damaged.

    A damaged shard is renamed, with a warning, so that its records are computed again.
    """
    reason = ""
    for _ in range(2):  # the first read on a network file system may return only a part of the file
        try:
            with open_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # mapped pages would stay in memory
            if digest != path.name.removesuffix(SHARD):
                reason = "its content does not match its name"
                continue
            return MappedShard.of(path)
        except FileNotFoundError:
            return None  # another process has renamed it
        except OSError as error:
            logger.warning("reference: %s cannot be read (%s) and is left out", path, error.strerror or error)
            return None
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it holds no records: {error}"
    logger.warning("reference: %s is damaged (%s); what it held is computed again", path, reason)
    set_aside(path, path.with_name(path.name + DAMAGED), logger)
    return None


def _require_finite(rows: Rows, logps: PairLogps) -> None:
    for side in (logps.chosen, logps.rejected):
        bad = [int(row) for place, row in enumerate(rows) if not np.isfinite(side[place]).all()]
        if bad:
            raise UserError(
                f"the reference gives log-probs that are not finite, first for pair {min(bad)} (counted from 0). "
                "Check the model's weights, or set trainer.precision=fp32."
            )
