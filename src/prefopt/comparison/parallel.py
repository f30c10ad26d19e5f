"""Parallel coordinates: the settings that differ and the resulting metrics, one line per configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.comparison.colours import row_group, row_style
from prefopt.comparison.metrics import is_finite
from prefopt.comparison.ranking import Comparison, Row
from prefopt.comparison.settings import MISSING, Settings, as_text
from prefopt.evaluation.metrics import ACCURACY, BY_KEY, KL, LOSS, Metric
from prefopt.reports.charts.drawing import Box, Figure, Scale, line, of_row, spread_out, svg, text, tick_texts, ticks

AXIS_WIDTH = 130
MIN_WIDTH, HEIGHT = 520, 380
LEFT, RIGHT, TOP, BOTTOM = 74, 40, 46, 30
WHOLE_FROM = 700
"""Width in pixels above which a chart takes the whole width of the page."""
MIN_SCALE = 0.8
"""Where there is less room, the chart is scrolled, not made smaller."""
MAX_SETTINGS = 8
NUM_NAMED, LABEL_GAP = 3, 13
"""Number of rows with their rank at the end of their line, and the least distance of two such labels in pixels."""
MAX_LEVELS = 9
"""An axis with more distinct numbers is a scale; otherwise each value has a position of its own."""
MAX_MARKS = 12
MAX_MARK_TEXT = 16
MARK_GAP, CHARACTER_WIDTH = 8, 8
"""Pixels between an axis and its marks, and about as wide as a character of them."""
LOG_FROM = 20
"""A scale whose ends differ by more than this factor is logarithmic."""
FAN = 18
"""Pixels over which lines through one value are spread, best on top, so that they can be told apart."""
LOW, HIGH = 0.07, 0.93
"""Heights of the lowest and highest value of an axis, in [0, 1]; a line without a value goes along the bottom."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis.

    Attributes:
        head: Its name.
        heights: Height of each row's line on the axis, from 0 (bottom) to 1; None if the row has no value.
        marks: Heights and labels of the marks.
        is_fanned: Whether lines are spread around a value, because rows share values.
    """

    head: str
    heights: list[float | None]
    marks: list[tuple[float, str]]
    is_fanned: bool


def parallel_figure(comparison: Comparison) -> Figure | None:
    """Draws the chart of the ranked rows; None if no setting differs or fewer than two rows are ranked."""
    rows = [row for row in comparison.rows if row.rank is not None]
    if not comparison.settings or len(rows) < 2:
        return None
    settings = [row.group.settings for row in rows]
    found = [setting_axis(head, key, settings) for key, head in comparison.settings.items()]
    axes = [axis for axis in found if axis is not None][:MAX_SETTINGS]
    axes += [_metric_axis(metric, rows) for metric in _outcomes(comparison, rows)]
    left = max(LEFT, MARK_GAP + CHARACTER_WIDTH * max(len(_shorten(mark)) for _, mark in axes[0].marks))
    width = max(MIN_WIDTH, left + RIGHT + AXIS_WIDTH * (len(axes) - 1))
    box = Box(width, HEIGHT, left, RIGHT, TOP, BOTTOM)
    x = Scale(0, len(axes) - 1, box.left, box.width - box.right)
    parts = [line(x(place), TOP, x(place), HEIGHT - BOTTOM, "axis") for place in range(len(axes))]
    lines = [_points(index, axes, x, len(rows)) for index in range(len(rows))]
    parts += [_draw_line(index, lines[index]) for index in reversed(range(len(rows)))]
    parts += _label_ranks([points[-1] for points in lines[:NUM_NAMED]])
    parts += [_label_axis(axis, x(place)) for place, axis in enumerate(axes)]
    heads = ", ".join(axis.head for axis in axes)
    chart = svg(box, parts, description=f"Parallel coordinates of {len(rows)} configurations over {heads}")
    left_out = list(comparison.settings.values())[MAX_SETTINGS:]
    caption = (
        "One line per configuration, best on top where lines share a value; the numbers are the ranks of the best "
        + (f"three. No room for: {', '.join(left_out)}." if left_out else "three.")
    )
    style, least_width = "whole" if width > WHOLE_FROM else "", round(MIN_SCALE * width)
    return Figure("Settings and outcomes", caption, chart, style=style, least_width=least_width)


def setting_axis(head: str, key: str, rows: Sequence[Settings]) -> Axis | None:
    """Returns the axis of a setting: a scale for many numbers, else a position per value. None if no row has it."""
    present = [settings[key] for settings in rows if key in settings]
    if not present:
        return None
    are_numbers = all(is_finite(value) for value in present)
    if are_numbers and len(set(present)) > MAX_LEVELS:
        return scale_axis(head, [settings.get(key) for settings in rows])
    ordered: list[Any] = sorted(set(present)) if are_numbers else present
    levels = list(dict.fromkeys(map(as_text, ordered)))
    place = Scale(0, len(levels) - 1, LOW, HIGH)
    heights = {level: place(index) for index, level in enumerate(levels)}
    step = math.ceil(len(levels) / MAX_MARKS)
    return Axis(
        head,
        [heights[as_text(settings[key])] if key in settings else None for settings in rows],
        [(heights[level], level) for level in levels[::step]],
        is_fanned=True,
    )


def scale_axis(head: str, values: Sequence[float | None], *, is_share: bool = False) -> Axis:
    """Returns an axis for numbers, at least one of them not None; logarithmic if they span orders of magnitude."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    if low > 0 and high / low > LOG_FROM:
        place = Scale(math.log10(low), math.log10(high), LOW, HIGH)
        heights = [None if value is None else place(math.log10(value)) for value in values]
        marks = [(place(math.log10(mark)), f"{mark:g}") for mark in _log_ticks(low, high)]
    else:
        place = Scale(low, high, LOW, HIGH)
        heights = [None if value is None else place(value) for value in values]
        found = ticks(low, high, 5)
        marks = list(zip(map(place, found), tick_texts(found, is_share=is_share), strict=True))
    return Axis(head, heights, marks, is_fanned=False)


def _log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten in [low, high]; on a short range also 2 and 5 times each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    parts = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    marks = [float(f"{part * 10.0**power:g}") for power in powers for part in parts]
    return [mark for mark in marks if low <= mark <= high]


def _outcomes(comparison: Comparison, rows: Sequence[Row]) -> list[Metric]:
    """The metric of the ranking, then accuracy, loss and KL if any row has them; at most three in all."""
    keys = dict.fromkeys((comparison.metric.key, ACCURACY, LOSS, KL))
    return [BY_KEY[key] for key in keys if any(row.group.spread(key) for row in rows)][:3]


def _metric_axis(metric: Metric, rows: Sequence[Row]) -> Axis:
    spreads = [row.group.spread(metric) for row in rows]
    values = [None if spread is None else spread.mean for spread in spreads]
    return scale_axis(metric.label, values, is_share=metric.unit.suffix == " %")


def _label_axis(axis: Axis, x: float) -> str:
    parts = [text(x, TOP - 22, axis.head, style="head")]
    for height, mark in axis.marks:
        parts.append(text(x - MARK_GAP, _y(height) + 4, _shorten(mark), anchor="end", style="tick over"))
    if None in axis.heights:
        parts.append(text(x - MARK_GAP, HEIGHT - BOTTOM + 4, MISSING, anchor="end", style="tick over"))
    return "".join(parts)


def _shorten(mark: str) -> str:
    return mark if len(mark) <= MAX_MARK_TEXT else f"{mark[: MAX_MARK_TEXT - 1]}\u2026"


def _points(index: int, axes: Sequence[Axis], x: Scale, num_rows: int) -> list[tuple[float, float]]:
    """Returns the points (x, y) at which a row's line crosses the axes."""
    points = []
    for place, axis in enumerate(axes):
        height = axis.heights[index]
        y = _y(height) if height is not None else float(HEIGHT - BOTTOM)
        fan = FAN * (index / (num_rows - 1) - 0.5) if axis.is_fanned or height is None else 0.0
        points.append((x(place), y + fan))
    return points


def _draw_line(index: int, points: Sequence[tuple[float, float]]) -> str:
    corners = "L".join(f"{x:.0f} {y:.1f}" for x, y in points)
    return f'<path class="{row_style(index)}"{of_row(index)} d="M{corners}"/>'


def _label_ranks(ends: Sequence[tuple[float, float]]) -> list[str]:
    """Labels the best rows with their ranks at the ends of their lines, without overlap."""
    heights = spread_out([y for _, y in ends], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    return [
        row_group(index, text(x + 8, y + 4, str(index + 1), anchor="start", style="label"))
        for index, ((x, _), y) in enumerate(zip(ends, heights, strict=True))
    ]


def _y(height: float) -> float:
    return HEIGHT - BOTTOM - height * (HEIGHT - BOTTOM - TOP)
