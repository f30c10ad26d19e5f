"""metrics.jsonl: one JSON object per log event, the source of truth for every comparison."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class Mirror(Protocol):
    """Something that is told every record as well, such as W&B."""

    def log(self, record: dict[str, Any]) -> None: ...


class MetricsLog:
    """Appends records, each a line that is on disk before `write` returns. Rank 0 only.

    A record has `step`, `time_s` (training time over all attempts), `pairs` and `tokens` seen so far, and TRL's
    metric names; evaluation records carry `split` as well. A value that is not finite is written as null.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self._path = path
        self._mirror = mirror

    def cut_after(self, step: int) -> None:
        """Drops the records beyond `step`, which a resumed run will write again, and a half-written last line."""
        if not self._path.exists():
            return
        kept = [json.dumps(record) for record in read_metrics(self._path) if record["step"] <= step]
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(self._path)

    def write(self, record: dict[str, Any]) -> None:
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        if self._mirror is not None:
            self._mirror.log(finite)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a metrics file; a last line cut by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON object ({error}).") from error
