"""The learning curves of a comparison: a chart per metric that holds the curves of all runs."""

from collections.abc import Iterator, Sequence

from prefopt.comparison.colours import NUM_BEST, row_style
from prefopt.comparison.curves import CURVES, CurveKind
from prefopt.comparison.ranking import Comparison
from prefopt.comparison.records import Curve
from prefopt.reports.charts.drawing import Box, Figure, robust_range
from prefopt.reports.charts.lines import Label, Line, line_chart

BOX = Box(width=520, height=280, left=52, right=30, top=10, bottom=40)
AXES = {"steps": "optimizer steps", "pairs": "pairs", "tokens": "tokens"}
"""Quantity of the x axis -> its title. The page shows the first; its buttons switch to the others."""

RowCurve = tuple[int, Curve]
"""The index of a run's row in the ranking, and the run's curve; the first `NUM_BEST` rows are in colour."""


def curve_figures(comparison: Comparison) -> tuple[list[Figure], list[str]]:
    """Returns the charts in which some run has two points, and the titles of the other charts."""
    charts = list(_curves_by_chart(comparison))
    figures = [
        Figure(title, _caption(kind, curves), _chart(kind, curves), style="curves")
        for title, kind, curves in charts
        if _has_curve(curves)
    ]
    return figures, [title for title, _, curves in charts if not _has_curve(curves)]


def _has_curve(curves: Sequence[RowCurve]) -> bool:
    """Whether any curve has at least two points."""
    return any(len(curve.values) > 1 for _, curve in curves)


def _curves_by_chart(comparison: Comparison) -> Iterator[tuple[str, CurveKind, list[RowCurve]]]:
    """Yields title, kind and curves of each chart; losses of different algorithms get different charts."""
    numbered = [(i, run) for i, row in enumerate(comparison.rows) for run in row.group.members]
    numbered += [(len(comparison.rows) + i, run) for i, run in enumerate(comparison.unranked)]
    algorithms = list(dict.fromkeys(run.algorithm for _, run in numbered if run.curves))
    for kind in CURVES:
        for algorithm in algorithms if kind.of_algorithm else [None]:
            curves = [
                (row, run.curves[kind.key])
                for row, run in numbered
                if kind.key in run.curves and algorithm in (None, run.algorithm)
            ]
            of = f" ({algorithm.upper()})" if algorithm and len(algorithms) > 1 else ""
            if curves:
                yield kind.title + of, kind, curves


def _caption(kind: CurveKind, curves: Sequence[RowCurve]) -> str:
    hints = [kind.hint]
    if any(curve.trend for row, curve in curves if row < NUM_BEST):
        hints.append("in bold means over neighbouring points")
    thinned = [curve for _, curve in curves if curve.num_logged > len(curve.values)]
    if thinned:
        logged, kept = max((curve.num_logged, len(curve.values)) for curve in thinned)
        hints.append(f"of up to {logged:,} logged points {kept} are drawn, highs and lows among them")
    return "; ".join(hints)


def _chart(kind: CurveKind, curves: Sequence[RowCurve]) -> str:
    """Draws the curves of one kind, the best rows on top of the others."""
    low, high = robust_range([value for _, curve in curves for value in curve.values])
    return line_chart(
        BOX,
        [line for row, curve in sorted(curves, key=lambda shown: -shown[0]) for line in _lines(row, curve)],
        _ranks(curves),
        axes=AXES,
        y_range=(low, min(high, 1.0) if kind.is_share else high),
        is_share=kind.is_share,
        description=f"{kind.title} of {len(curves)} runs against optimizer steps",
    )


def _lines(row: int, curve: Curve) -> list[Line]:
    """Returns the lines of a curve: for a row in colour, the trend of a noisy curve lies over the logged values."""
    if row < NUM_BEST and curve.trend is not None:
        return [_line(row, curve, f"{row_style(row)} raw"), _line(row, curve.trend, row_style(row))]
    return [_line(row, curve, row_style(row))]


def _line(row: int, curve: Curve, style: str) -> Line:
    places = {"steps": curve.steps, "pairs": curve.pairs, "tokens": curve.tokens}
    return Line(style, curve.values, {axis: points for axis, points in places.items() if points}, row)


def _ranks(curves: Sequence[RowCurve]) -> list[Label]:
    """Labels the best rows with their place in the ranking, at the mean height of their curves' ends."""
    ends: dict[int, list[float]] = {}
    for row, curve in curves:
        if row < NUM_BEST:
            ends.setdefault(row, []).append((curve.trend or curve).values[-1])
    return [Label(str(row + 1), sum(found) / len(found), row_style(row), row) for row, found in ends.items()]
