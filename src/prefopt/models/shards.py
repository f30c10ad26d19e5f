"""Shards of a store of reference log-probs: their records, their keys, and the check for damage."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from prefopt.data.ragged import Array, PairLogps, PairTable, Ragged
from prefopt.process.errors import UserError
from prefopt.storage.sealed import DAMAGED, set_aside

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the format of shards and keys."""
SHARD = ".safetensors"
KEY_BYTES = 16

Rows = NDArray[np.int64]
Keys = tuple[list[bytes], list[bytes]]
"""Keys of all pairs: (those of the chosen completions, those of the rejected ones)."""


@dataclass
class Shard:
    """Records that are not on disk yet: one completion's log-probs per key."""

    keys: list[bytes] = field(default_factory=list)
    records: list[Array] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, keys: Keys, rows: Rows, logps: PairLogps) -> None:
        """Adds the records of the chosen and rejected completions of `rows`; `logps` has the same order as `rows`.

        Raises:
            UserError: A log-prob is not finite.
        """
        _require_finite(rows, logps)
        for place, row in enumerate(rows):
            self.keys += [keys[0][row], keys[1][row]]
            self.records += [logps.chosen[place], logps.rejected[place]]

    def content(self) -> dict[str, Array]:
        rows = Ragged.of(self.records, np.float32)
        return {
            "keys": np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(-1, KEY_BYTES),
            "lengths": rows.lengths.astype(np.int32),
            "logps": rows.values,
            "seconds": np.array([self.seconds]),
        }


def keys_of(table: PairTable) -> Keys:
    """Returns digests of (prompt, completion) for the chosen and the rejected completions."""
    sides: Keys = ([], [])
    for row in range(len(table)):
        prompt = hashlib.sha256(np.int64(len(table.prompt[row])).tobytes() + table.prompt[row].tobytes())
        for side, completions in zip(sides, (table.chosen, table.rejected), strict=True):
            digest = prompt.copy()
            digest.update(completions[row].tobytes())
            side.append(digest.digest()[:KEY_BYTES])
    return sides


def read_sound(path: Path) -> dict[str, Array] | None:
    """Returns the content of a shard; None if it is unreadable or damaged.

    A damaged shard is renamed, with a warning, so that its records are computed again.
    """
    reason = ""
    for _ in range(2):  # the first read on a network file system may return only a part of the file
        try:
            packed = path.read_bytes()
        except FileNotFoundError:
            return None  # another process has renamed it
        except OSError as error:
            logger.warning("reference: %s cannot be read (%s) and is left out", path, error.strerror)
            return None
        if hashlib.sha256(packed).hexdigest() != path.name.removesuffix(SHARD):
            reason = "its content does not match its name"
            continue
        try:
            content: dict[str, Array] = load(packed)
            return content
        except SafetensorError as error:
            reason = str(error)
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
