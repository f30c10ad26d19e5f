"""Thins out learning curves for drawing; ends, peaks and dips stay."""

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
"""A training curve of at least `TREND_FROM` points has a trend: `TREND_POINTS` means over neighbouring points."""
MAX_POINTS, MIN_POINTS = 240, 60
"""Most points of a curve in a comparison of few runs, and of many runs."""
POINT_BUDGET = 60_000
"""Number of points that all curves of a chart share, to bound the size of the page."""


def points_for(num_runs: int) -> int:
    """Returns the most points that a curve keeps if `num_runs` runs share a chart."""
    return max(MIN_POINTS, min(MAX_POINTS, POINT_BUDGET // max(num_runs, 1)))


def read_curves(log: Log, max_points: int) -> dict[str, Curve]:
    """Returns the curves in a log; values that are not finite are left out."""
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
    """Builds the curve of `values`, one for each of `rows`, with only the points at the indices `kept`."""
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
    """Returns indices of at most `max_points` (>= 4) values: first, last, and each stretch's lowest and highest."""
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
