"""Chart of values with their 95 % intervals on one axis, one row per value."""

import math
from dataclasses import dataclass

from prefopt.reports.charts.drawing import Box, Scale, circle, diamond, group, line, svg, text, ticks, with_air, x_axis

WIDTH, ROW_HEIGHT = 430, 46
SIDES = {"left": 14, "right": 22, "bottom": 28}


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A value with its interval; `text` is the value as shown, `style` the CSS class of its colour."""

    label: str
    value: float
    bounds: tuple[float, float] | None
    text: str
    style: str
    is_baseline: bool = False


def interval_chart(rows: list[IntervalRow], *, is_share: bool, chance: float | None, description: str) -> str:
    """Draws dots with intervals, first row on top, and a dashed line at `chance`; the axis covers all intervals."""
    top = 4 if chance is None else 18
    box = Box(WIDTH, top + ROW_HEIGHT * len(rows) + SIDES["bottom"], top=top, **SIDES)
    x = box.x(*_range(rows, chance, is_share=is_share))
    bottom = box.height - box.bottom
    marks = ticks(x.low, x.high, 5)
    parts = [line(x(mark), top, x(mark), bottom, "grid") for mark in marks]
    parts += [line(box.left, bottom, box.width - box.right, bottom, "grid")]
    parts += x_axis(box, x, marks, "", is_share=is_share)
    if chance is not None:
        parts += [line(x(chance), top, x(chance), bottom, "mark"), text(x(chance), top - 6, "chance")]
    parts += [_row(row, top + ROW_HEIGHT * place, x) for place, row in enumerate(rows)]
    return svg(box, parts, description=description)


def _row(row: IntervalRow, top: float, x: Scale) -> str:
    """Draws the text above, the dot with its interval below; a baseline has thinner text and a diamond."""
    words, middle = top + 17, top + 33
    style = "word over" if row.is_baseline else "head over"
    parts = [
        text(0, words, row.label, anchor="start", style=style),
        text(WIDTH, words, row.text, anchor="end", style=style),
    ]
    if row.bounds:
        parts.append(line(x(row.bounds[0]), middle, x(row.bounds[1]), middle, "interval"))
    mark = diamond(x(row.value), middle, 4, "value") if row.is_baseline else circle(x(row.value), middle, 6, "value")
    return group(row.style, "".join([*parts, mark]))


def _range(rows: list[IntervalRow], chance: float | None, *, is_share: bool) -> tuple[float, float]:
    values = [value for row in rows for value in (row.value, *(row.bounds or ()))]
    values += [] if chance is None else [chance]
    low, high = min(values), max(values)
    if not is_share:
        return with_air(low, high)
    return max(0.0, math.floor(low * 10 - 0.2) / 10), min(1.0, math.ceil(high * 10 + 0.2) / 10) + 0.005
