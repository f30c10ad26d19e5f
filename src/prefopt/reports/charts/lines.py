"""Line charts: values against steps or another measure of a run's progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefopt.reports.charts.drawing import (
    FINE,
    Box,
    Scale,
    group,
    line,
    of_row,
    path,
    plot_area,
    spread_out,
    steps,
    svg,
    text,
    ticks,
    x_axis,
    y_axis,
)

LABEL_GAP = 13
"""Least distance between two labels, in pixels."""
BEYOND = 20.0
"""Pixels outside the plot area to which far-off values are clamped, out of sight."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve; a single point is drawn as a dot.

    Attributes:
        style: Its CSS classes.
        values: One per point.
        places: Axis -> positions of the points on it, ascending; an axis without known positions is absent.
        row: The row of a ranking that it belongs to, for the page's script.
        has_dots: Whether every point has a dot.
    """

    style: str
    values: Sequence[float]
    places: Mapping[str, Sequence[float]]
    row: int | None = None
    has_dots: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """A label to the right of the plot area: `word` at the height of `value`, in the colour of `style`."""

    word: str
    value: float
    style: str
    row: int | None = None


def line_chart(
    box: Box,
    lines: Sequence[Line],
    labels: Sequence[Label],
    *,
    axes: Mapping[str, str],
    y_range: tuple[float, float],
    description: str,
    is_share: bool = False,
    baseline: float | None = None,
) -> str:
    """Draws all `lines` in one plot area, the last one on top.

    Args:
        box: Size and margins of the chart.
        lines: All have positions on the first of the axes.
        labels: Moved apart where they would overlap.
        axes: Name -> title. The first is drawn; the page's script moves the points to another one by `data-<axis>`.
        y_range: Ends of the y axis; values far outside are clamped to just outside the plot area.
        description: Text for screen readers.
        is_share: Whether values are labelled in percent.
        baseline: Value at which a dashed line is drawn.
    """
    width, height = (FINE * size for size in box.inner)
    y = box.y(*y_range)
    ends = {axis: _end(lines, axis) for axis in axes}
    xs = {axis: Scale(0, end, 0, width) for axis, end in ends.items()}
    fine_y = Scale(*y_range, height, 0)
    drawn = [_curve(shown, xs, fine_y) for shown in lines]
    across = [] if baseline is None else [line(box.left, y(baseline), box.width - box.right, y(baseline), "mark")]
    parts = [*y_axis(box, y, ticks(*y_range, 5), is_share=is_share), *across]
    parts += [_x_axis(box, axis, title, ends[axis], is_first=axis in list(axes)[:1]) for axis, title in axes.items()]
    return svg(box, [*parts, plot_area(box, drawn), *_labels(box, labels, y)], description=description)


def _end(lines: Sequence[Line], axis: str) -> float:
    return max((shown.places[axis][-1] for shown in lines if axis in shown.places), default=0.0) or 1.0


def _curve(shown: Line, xs: Mapping[str, Scale], y: Scale) -> str:
    top, bottom = -FINE * BEYOND, y.start + FINE * BEYOND
    heights = y.all(shown.values)
    if min(heights) < top or max(heights) > bottom:
        heights = [min(max(height, top), bottom) for height in heights]
    first, *others = (axis for axis in xs if axis in shown.places)
    data = of_row(shown.row)
    places = "".join(f' data-{axis}="{steps(xs[axis].all(shown.places[axis]))}"' for axis in others)
    across = xs[first].all(shown.places[first])
    style = shown.style if len(heights) > 1 else f"{shown.style} dot"
    curve = f'<path class="{style}"{data} d="{path(across, heights)}"{places}/>'
    if shown.has_dots and len(heights) > 1:
        dots = "".join(f"M{x:.0f} {height:.0f}h0" for x, height in zip(across, heights, strict=True))
        curve += f'<path class="{shown.style} dot"{data} d="{dots}"/>'
    return curve


def _x_axis(box: Box, axis: str, title: str, end: float, *, is_first: bool) -> str:
    hidden = "" if is_first else ' style="display:none"'
    marks = x_axis(box, box.x(0, end), ticks(0, end, 5, is_whole=True), title)
    return f'<g class="axis" data-axis="{axis}"{hidden}>{"".join(marks)}</g>'


def _labels(box: Box, labels: Sequence[Label], y: Scale) -> list[str]:
    places = spread_out([y(label.value) for label in labels], LABEL_GAP, box.top + 4, box.height - box.bottom)
    x = box.width - box.right + 8
    return [
        group(label.style, text(x, place + 4, label.word, anchor="start", style="label"), label.row)
        for label, place in zip(labels, places, strict=True)
    ]
