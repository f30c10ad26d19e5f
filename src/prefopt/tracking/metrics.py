"""metrics.jsonl: one JSON object per log event, the source of truth for every comparison."""

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

TIMES = ("time_s", "training_s")
"""The keys of a record that no two runs have in common."""


class Mirror(Protocol):
    """Something that is told every record as well, such as W&B."""

    def log(self, record: dict[str, Any]) -> None: ...


class MetricsLog:
    """Appends records, each a line that is on disk before `write` returns. Rank 0 only.

    A record has `step`, `time_s` (training time over all attempts, with evaluations and checkpoints), `training_s`
    (that of optimizer steps alone), `pairs` and `tokens` seen so far, and TRL's metric names; evaluation records carry
    `split` as well. A value that is not finite is written as null.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self._path = path
        self._mirror = mirror

    def write(self, record: dict[str, Any]) -> None:
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._mirror is not None:
            self._mirror.log(finite)
