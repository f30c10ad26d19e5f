"""metrics.jsonl: one JSON object per log event, the source of truth for every comparison."""

import json
import math
from pathlib import Path
from typing import Any, Protocol

from prefopt.storage.files import append_text

TIMES = ("time_s", "training_s")
"""The keys of a record that no two runs have in common."""


class Mirror(Protocol):
    """Something that is told every record as well, such as W&B."""

    def log(self, record: dict[str, Any]) -> None: ...


class MetricsLog:
    """Appends records, each a line that is on disk before `write` returns. Rank 0 only.

    Records that could not be written are kept, and written before the next one.

    A record has `step`, `time_s` (training time over all attempts, with evaluations and checkpoints), `training_s`
    (that of optimizer steps alone), `pairs` and `tokens` seen so far, and TRL's metric names; evaluation records carry
    `split` as well. A value that is not finite is written as null.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self._path = path
        self._mirror = mirror
        self._waiting: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record.

        Raises:
            OSError: It could not be written, and waits; the file is as it was.
        """
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        self._waiting.append(json.dumps(finite) + "\n")
        if self._mirror is not None:
            self._mirror.log(finite)
        self.write_waiting()

    def write_waiting(self) -> None:
        """Writes what could not be written before; raises as `write`."""
        if not self._waiting:
            return
        append_text(self._path, "".join(self._waiting))
        self._waiting.clear()
