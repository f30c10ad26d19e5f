"""Reads metrics.jsonl as columns: fast enough for a million lines, and tolerant of half-written lines."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.comparison.curves import CURVES
from prefopt.comparison.metrics import HELD_OUT, SPLIT, is_finite
from prefopt.evaluation.metrics import COMPARED
from prefopt.evaluation.statistics import Floats
from prefopt.reports.charts.drawing import LARGEST
from prefopt.storage.reading import parse_json

PROGRESS = ("step", "time_s", "training_s", "pairs", "tokens")
NUMBERS = tuple(
    dict.fromkeys([*PROGRESS, *(kind.name for kind in CURVES), *(m.logged for m in COMPARED if m.logged is not None)])
)
"""The fields that are read from a line; others are ignored."""
ARROW_FROM = 64 * 1024
"""Size in bytes from which on Arrow's reader, three times as fast, is worth the time of its import."""


@dataclass(frozen=True, slots=True)
class Log:
    """The log lines of a run in their order, as columns.

    Attributes:
        columns: Name -> numbers, shape (lines,); NaN where a line has no finite number.
        is_held_out: Whether a line is of a held-out evaluation, shape (lines,).
        is_train: Whether a line is of training, shape (lines,); a line of another split is neither.
        num_damaged: Number of lines that could not be read and are left out.
    """

    columns: Mapping[str, Floats]
    is_held_out: NDArray[np.bool_]
    is_train: NDArray[np.bool_]
    num_damaged: int = 0

    @property
    def last_step(self) -> int | None:
        steps = self.columns["step"]
        known = steps[np.isfinite(steps)]
        return int(known[-1]) if len(known) else None

    def last(self, *, is_held_out: bool = False) -> dict[str, float]:
        """Returns the numbers of the last line, or of the last held-out line; empty if there is none."""
        rows = np.flatnonzero(self.is_held_out) if is_held_out else np.arange(len(self.is_train))
        if not len(rows):
            return {}
        values = {name: float(column[rows[-1]]) for name, column in self.columns.items()}
        return {name: value for name, value in values.items() if is_finite(value)}


def parse_log(content: bytes) -> Log:
    """Reads a JSON-lines file.

    A last line without a newline may be half written: it is read if it is whole, else ignored and not counted as
    damaged. Any other line that is not a JSON object is left out and counted.
    """
    end = content.rfind(b"\n") + 1
    whole, rest = content[:end], content[end:].strip()
    is_more = bool(rest) and isinstance(_parse(rest), dict)
    if is_more:
        whole = content
    if len(whole) >= ARROW_FROM:
        log = _by_arrow(whole)
        if log is not None:
            return log
    return _by_json(whole)


def from_rows(rows: Sequence[Mapping[str, object]], num_damaged: int = 0) -> Log:
    """Builds the columns from parsed lines."""
    columns = {name: np.array([_number(row.get(name)) for row in rows], dtype=float) for name in NUMBERS}
    return _log(columns, [row.get(SPLIT) for row in rows], num_damaged)


def _by_arrow(whole: bytes) -> Log | None:
    """Parses all lines at once; None if any line is not exactly one JSON object."""
    import pyarrow as pa  # takes a fifth of a second to import
    from pyarrow import json as arrow_json

    schema = pa.schema([(SPLIT, pa.string()), *((name, pa.float64()) for name in NUMBERS)])
    try:
        table = arrow_json.read_json(
            io.BytesIO(whole),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(whole) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != whole.count(b"\n") + (not whole.endswith(b"\n")):
        return None  # Arrow reads two objects in one line as two rows
    columns = {name: table.column(name).to_numpy() for name in NUMBERS}
    finite = {name: np.where(np.abs(column) <= LARGEST, column, np.nan) for name, column in columns.items()}
    return _log(finite, table.column(SPLIT).to_pylist(), 0)


def _by_json(whole: bytes) -> Log:
    parsed = [_parse(line) for line in whole.split(b"\n") if line.strip()]
    rows = [row for row in parsed if isinstance(row, dict)]
    return from_rows(rows, len(parsed) - len(rows))


def _log(columns: Mapping[str, Floats], splits: Iterable[object], num_damaged: int) -> Log:
    splits = list(splits)
    is_held_out = np.array([split == HELD_OUT for split in splits], dtype=bool)
    is_train = np.array([split is None for split in splits], dtype=bool)
    return Log(columns, is_held_out, is_train, num_damaged)


def _number(value: Any) -> float:
    return float(value) if is_finite(value) else np.nan


def _parse(line: bytes) -> object:
    try:
        return parse_json(line)
    except ValueError:
        return None
