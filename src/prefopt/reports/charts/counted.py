"""Histograms of values that were counted before, such as those of an audit of a million rows."""

from collections.abc import Sequence

from prefopt.reports.charts.drawing import Box, line, svg, text, ticks, x_axis, y_axis
from prefopt.reports.charts.histogram import HEIGHT, outline
from prefopt.reports.charts.intervals import WIDTH


def counted_histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    x_label: str,
    unit: str,
    description: str,
    style: str = "tuned",
    names: dict[float, str] | None = None,
    mark: tuple[float, str] | None = None,
    ends: tuple[str, str] = ("", ""),
) -> str:
    """Draws the number of rows in each bin.

    Args:
        counts: Rows by bin; at least one is not 0.
        edges: Edges of the bins, one more than bins.
        x_label: Title of the x axis.
        unit: What is counted, the title of the y axis.
        description: Text for screen readers.
        style: CSS class of the colour.
        names: Value -> its label on the x axis; None: round numbers.
        mark: A value at which a line is drawn, and its label; beyond the edges it is left out.
        ends: What the sides of the mark mean, left and right.
    """
    box = Box(WIDTH, HEIGHT, left=46, right=14, top=22, bottom=40)
    x, y = box.x(edges[0], edges[-1]), box.y(0, 1.05 * max(counts))
    bottom, middle = box.height - box.bottom, box.top + box.inner[1] / 2
    parts = y_axis(box, y, ticks(0, y.high, 4, is_whole=True))
    if names is None:
        parts += x_axis(box, x, ticks(edges[0], edges[-1], 6), x_label)
    else:
        parts += [text(x(value), bottom + 17, name) for value, name in names.items()]
        parts += [text(box.left + box.inner[0] / 2, bottom + 34, x_label)]
    parts += [f'<g transform="rotate(-90)">{text(-middle, 11, unit)}</g>', outline(style, counts, edges, x, y)]
    if mark is not None and edges[0] <= mark[0] <= edges[-1]:
        place = x(mark[0])
        parts += [line(place, box.top, place, bottom, "zero"), *_mark_words(box, place, mark[1], ends)]
    return svg(box, parts, description=description)


def _mark_words(box: Box, place: float, word: str, ends: tuple[str, str]) -> list[str]:
    above = box.top - 6
    if word:
        return [text(place, above, word, anchor="end" if place > box.width / 2 else "start")]
    left, right = ends
    sides = []
    if place > box.left:  # at an edge, a side has no bins, and its word no room
        sides.append(text(place - 6, above, f"\u2190 {left}", anchor="end"))
    if place < box.width - box.right:
        sides.append(text(place + 6, above, f"{right} \u2192", anchor="start"))
    return sides
