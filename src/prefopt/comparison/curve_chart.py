"""Learning curves of many runs in one chart, against optimizer steps, pairs or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.comparison.curves import CurveKind
from prefopt.comparison.drawing import (
    FINE,
    NUM_BEST,
    Box,
    Scale,
    line,
    look,
    path,
    plot_area,
    robust_range,
    spread_out,
    steps,
    svg,
    text,
    tick_text,
    ticks,
)
from prefopt.comparison.records import Curve

BOX = Box(width=520, height=280, left=52, right=30, top=10, bottom=40)
AXES = ("steps", "pairs", "tokens")
"""What a curve can be drawn against. The page shows the first, its buttons the others."""
LABEL_GAP = 13
BEYOND = 20.0
"""Pixels beyond the plot area at which far-off values are drawn, out of sight."""


@dataclass(frozen=True, slots=True)
class Line:
    """A run's curve. `row` is the place of its row: the first ten are in colour."""

    row: int
    curve: Curve


def curve_chart(kind: CurveKind, lines: Sequence[Line]) -> str:
    """The curves of one kind, the best rows on top of the others.

    The page's script moves the points to another axis: `data-pairs` and `data-tokens` hold their places there.
    """
    width, height = (FINE * size for size in BOX.inner)
    low, high = robust_range([value for shown in lines for value in shown.curve.values])
    y = Scale(low, min(high, 1.0) if kind.is_share else high, height, 0)
    ends = {axis: _end(lines, axis) for axis in AXES}
    xs = {axis: Scale(0, end, 0, width) for axis, end in ends.items()}
    drawn = sorted(lines, key=lambda shown: -shown.row)
    return svg(
        BOX,
        [
            *_y_axis(y, is_share=kind.is_share),
            *(_x_axis(axis, ends[axis]) for axis in AXES),
            plot_area(BOX, [_paths(shown, xs, y) for shown in drawn]),
            *_labels(lines, y),
        ],
        description=f"{kind.title} of {len(lines)} runs against optimizer steps",
    )


def _end(lines: Sequence[Line], axis: str) -> float:
    found = (getattr(shown.curve, axis) for shown in lines)
    return max((points[-1] for points in found if points), default=0.0) or 1.0


def _paths(shown: Line, xs: dict[str, Scale], y: Scale) -> str:
    """A row in colour shows the trend of a noisy curve above what was logged."""
    trend = shown.curve.trend if shown.row < NUM_BEST else None
    if trend is None:
        return _path(shown.row, shown.curve, xs, y)
    return _path(shown.row, shown.curve, xs, y, style="raw") + _path(shown.row, trend, xs, y)


def _path(row: int, curve: Curve, xs: dict[str, Scale], y: Scale, style: str = "") -> str:
    top, bottom = -FINE * BEYOND, y.start + FINE * BEYOND
    heights = y.all(curve.values)
    if min(heights) < top or max(heights) > bottom:
        heights = [min(max(height, top), bottom) for height in heights]
    others = {axis: getattr(curve, axis) for axis in AXES[1:]}
    data = "".join(f' data-{axis}="{steps(xs[axis].all(points))}"' for axis, points in others.items() if points)
    styles = " ".join(filter(None, (look(row), "dot" if len(curve.values) == 1 else "", style)))
    d = path(xs[AXES[0]].all(curve.steps), heights)
    return f'<path class="{styles}" data-g="{row}" d="{d}"{data}/>'


def _y_axis(y: Scale, *, is_share: bool) -> list[str]:
    parts = []
    for tick in ticks(y.low, y.high, 5):
        height = BOX.top + y(tick) / FINE
        parts.append(line(BOX.left, height, BOX.width - BOX.right, height, "grid"))
        parts.append(text(BOX.left - 7, height + 4, tick_text(tick, is_share=is_share), anchor="end"))
    return parts


def _x_axis(axis: str, end: float) -> str:
    width, _ = BOX.inner
    bottom = BOX.height - BOX.bottom
    x = Scale(0, end, BOX.left, BOX.left + width)
    marks = [text(x(tick), bottom + 17, tick_text(tick)) for tick in ticks(0, end, 5, is_whole=True)]
    title = text(BOX.left + width / 2, bottom + 34, {"steps": "optimizer steps"}.get(axis, axis))
    hidden = "" if axis == AXES[0] else ' style="display:none"'
    return f'<g class="axis" data-axis="{axis}"{hidden}>{"".join(marks)}{title}</g>'


def _labels(lines: Sequence[Line], y: Scale) -> list[str]:
    """The rank of each of the best rows beside the end of its curves."""
    ends: dict[int, list[float]] = {}
    for shown in lines:
        if shown.row < NUM_BEST:
            ends.setdefault(shown.row, []).append((shown.curve.trend or shown.curve).values[-1])
    wanted = [BOX.top + y(sum(values) / len(values)) / FINE for values in ends.values()]
    places = spread_out(wanted, LABEL_GAP, BOX.top + 4, BOX.height - BOX.bottom)
    x = BOX.width - BOX.right + 8
    return [
        f'<g class="{look(row)}" data-g="{row}">{text(x, place + 4, str(row + 1), anchor="start", style="rank")}</g>'
        for row, place in zip(ends, places, strict=True)
    ]
