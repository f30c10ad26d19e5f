"""Learning curves, thinned out so that what the eye would see stays: ends, peaks and dips."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prefopt.comparison.curves import CURVES, TRAIN, CurveKind
from prefopt.comparison.log import Log
from prefopt.comparison.metrics import HELD_OUT
from prefopt.comparison.records import Curve
from prefopt.evaluation.statistics import Floats

TREND_FROM, TREND_POINTS = 80, 40
"""A training curve with more lines has a trend of so many points, each the mean of its neighbours."""
MAX_POINTS, MIN_POINTS = 240, 60
"""Points of a curve in a comparison of few runs, and of many."""
POINT_BUDGET = 60_000
"""Points of one chart, which bounds the size of the page."""


def points_for(num_runs: int) -> int:
    """Points that a curve keeps where so many runs share a chart."""
    return max(MIN_POINTS, min(MAX_POINTS, POINT_BUDGET // max(num_runs, 1)))


def read_curves(log: Log, max_points: int) -> dict[str, Curve]:
    """The curves that a log holds; values that are not finite have no point."""
    rows = {TRAIN: log.is_train, HELD_OUT: log.is_held_out}
    found = {kind.key: _curve(log, rows[kind.split], kind, max_points) for kind in CURVES}
    return {key: curve for key, curve in found.items() if curve is not None}


def _curve(log: Log, is_row: NDArray[np.bool_], kind: CurveKind, max_points: int) -> Curve | None:
    rows = np.flatnonzero(is_row & np.isfinite(log.columns[kind.name]) & np.isfinite(log.columns["step"]))
    if not len(rows):
        return None
    values = log.columns[kind.name][rows]
    curve = _at(log, rows, values, thin(values.tolist(), max_points), len(rows))
    if kind.split != TRAIN or len(rows) < TREND_FROM:
        return curve
    edges = np.linspace(0, len(rows), TREND_POINTS + 1).astype(int)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    middles = (edges[:-1] + edges[1:] - 1) // 2
    trend = _at(log, rows[middles], means, range(TREND_POINTS), TREND_POINTS)
    return replace(curve, trend=trend)


def _at(log: Log, rows: NDArray[np.int64], values: Floats, kept: Sequence[int], num_logged: int) -> Curve:
    """The curve through `values`, one for each of `rows`, at the `kept` ones."""
    chosen = rows[list(kept)]

    def column(name: str) -> list[float] | None:
        found = log.columns[name][chosen]
        return found.tolist() if np.isfinite(found).all() else None

    return Curve(
        steps=log.columns["step"][chosen].tolist(),
        pairs=column("pairs"),
        tokens=column("tokens"),
        values=values[list(kept)].tolist(),
        num_logged=num_logged,
    )


def thin(values: Sequence[float], max_points: int) -> list[int]:
    """Indices of at most `max_points` (>= 4) values: the first, the last, and each stretch's lowest and highest."""
    if len(values) <= max_points:
        return list(range(len(values)))
    inner = len(values) - 2
    stretches = (max_points - 2) // 2
    kept = [0]
    for stretch in range(stretches):
        start, end = (1 + inner * (stretch + side) // stretches for side in (0, 1))
        part = values[start:end]
        kept += sorted({start + part.index(min(part)), start + part.index(max(part))})
    return [*kept, len(values) - 1]
