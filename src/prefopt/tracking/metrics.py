"""Writes metrics.jsonl: one JSON object per log event; every comparison of runs reads it."""

import json
import math
from pathlib import Path
from typing import Protocol

from prefopt.storage.files import append_text

TIMES = ("time_s", "training_s")
"""Keys of a record whose values are times, and so differ between equal runs."""


class Mirror(Protocol):
    """A second receiver of every record, such as W&B."""

    def log(self, record: dict[str, object]) -> None: ...


class MetricsLog:
    """Appends records to a file, each a line that is on the disk when `write` returns. Rank 0 only.

    Records that could not be written are kept, and written before the next one.

    A record has `step`, `time_s` (seconds of training over all attempts, with evaluations and checkpoints),
    `training_s` (seconds of optimizer steps alone), `pairs` and `tokens` seen so far, and TRL's metric names;
    evaluation records also have `split`. A value that is not finite is written as null.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self._path = path
        self._mirror = mirror
        self._waiting: list[str] = []

    def write(self, record: dict[str, object]) -> None:
        """Writes one record.

        Raises:
            OSError: The record could not be written; it is kept, and the file is unchanged.
        """
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        self._waiting.append(json.dumps(finite) + "\n")
        if self._mirror is not None:
            self._mirror.log(finite)
        self.write_waiting()

    def write_waiting(self) -> None:
        """Writes the records that could not be written before; raises like `write`."""
        if not self._waiting:
            return
        append_text(self._path, "".join(self._waiting))
        self._waiting.clear()
