"""The report's charts as SVG strings. Sizes are in pixels at a width that a phone shows unscaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.evaluation.metrics import Unit
from prefopt.reports.curves import Panel, Series
from prefopt.reports.numbers import number
from prefopt.reports.svg import SENTINELS, drawing_style, new_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

INK, MUTED = SENTINELS["ink"], SENTINELS["muted"]
WIDE, NARROW = 430, 340
ROW_HEIGHT = 46
LABEL_GAP = 14
TYPICAL_BINS = 24
MIN_BINS_PER_SIDE = 2
MAX_DOTS = 20


@dataclass(frozen=True)
class IntervalRow:
    """A dot with its interval; `text` is the value as the reader sees it."""

    label: str
    value: float
    bounds: tuple[float, float] | None
    text: str
    colour: str
    is_baseline: bool = False


def interval_chart(rows: list[IntervalRow], *, unit: Unit, chance: float | None, description: str) -> str:
    """Dots with 95 % intervals, one row each, and a dashed line at `chance`."""
    with drawing_style():
        height = 44 + ROW_HEIGHT * len(rows)
        figure, axes = new_axes(WIDE, height, (14, 22, 18 if chance is not None else 4, 28))
        axes.set_ylim(-0.45, len(rows) - 0.25)
        axes.set_yticks([])
        low, high = _interval_range(rows, unit, chance)
        axes.set_xlim(low, high)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(_nice_ticks(5))
        axes.xaxis.set_major_formatter(lambda x, _: _tick(x, unit))
        if chance is not None:
            axes.axvline(chance, color=MUTED, linewidth=1.2, dashes=(4, 3))
            at_top = axes.get_xaxis_transform()
            axes.annotate("chance", (chance, 1), (0, 5), at_top, "offset points", color=MUTED, ha="center")
        for position, row in enumerate(reversed(rows)):
            _draw_interval(axes, position, row)
        return to_svg(figure, name="intervals", description=description)


def _draw_interval(axes: "Axes", y: int, row: IntervalRow) -> None:
    colour = SENTINELS[row.colour]
    if row.bounds:
        axes.plot(row.bounds, (y, y), color=colour, linewidth=2 if row.is_baseline else 4, solid_capstyle="round")
    marker, size = ("D", 6) if row.is_baseline else ("o", 11)
    axes.plot([row.value], [y], marker=marker, markersize=size, color=colour, markeredgewidth=0)
    across = axes.get_yaxis_transform()
    weight = "normal" if row.is_baseline else "bold"
    behind = {"facecolor": SENTINELS["page"], "edgecolor": "none", "pad": 1.5}
    for x, text, align in ((0, row.label, "left"), (1, row.text, "right")):
        axes.text(x, y + 0.28, text, transform=across, ha=align, color=INK, weight=weight, bbox=behind)


def _interval_range(rows: list[IntervalRow], unit: Unit, chance: float | None) -> tuple[float, float]:
    values = [value for row in rows for value in (row.value, *(row.bounds or ()))]
    values += [] if chance is None else [chance]
    low, high = min(values), max(values)
    if unit.suffix.strip() == "%":
        return max(0.0, math.floor(low * 10 - 0.2) / 10), min(1.0, math.ceil(high * 10 + 0.2) / 10) + 0.005
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def histogram(
    groups: dict[str, list[float]], colours: dict[str, str], *, name: str, x_label: str, description: str, width: int
) -> str:
    """Counts per bin around a zero line, the last group on top; bins never straddle zero."""
    with drawing_style():
        figure, axes = new_axes(width, 230, (40, 14, 22, 42))
        edges = bin_edges([value for values in groups.values() for value in values])
        inner = (edges[0] + 1e-12, edges[-1] - 1e-12)
        for index, (label, values) in enumerate(groups.items()):
            clipped = [min(max(value, inner[0]), inner[1]) for value in values]
            colour = SENTINELS[colours[label]]
            axes.hist(clipped, edges, histtype="stepfilled", facecolor=colour, alpha=0.28, linewidth=0)
            axes.hist(clipped, edges, histtype="step", edgecolor=colour, linewidth=1.2 + 0.6 * index)
        axes.axvline(0, color=INK, linewidth=1.2)
        _label_sides(axes)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(x_label)
        axes.set_ylabel("pairs")
        _quiet_y_axis(axes, is_count=True)
        return to_svg(figure, name=name, description=description)


def _label_sides(axes: "Axes") -> None:
    at_top = axes.get_xaxis_transform()
    for text, align, offset in (("\u2190 rejected", "right", -6), ("chosen \u2192", "left", 6)):
        axes.annotate(text, (0, 1), (offset, 6), at_top, "offset points", ha=align, color=MUTED)


def bin_edges(values: Sequence[float]) -> list[float]:
    """Bins of a round width, aligned on zero, that leave out at most the outer 0.5 % on each side."""
    ordered = sorted(values)
    cut = len(ordered) // 200
    low, high = min(ordered[cut], 0.0), max(ordered[-1 - cut], 0.0)
    if low == high:
        return [-1.0, 0.0, 1.0]
    width = _round_width((high - low) / TYPICAL_BINS)
    first, last = math.floor(low / width), math.ceil(high / width)
    return [index * width for index in range(min(first, -MIN_BINS_PER_SIDE), max(last, MIN_BINS_PER_SIDE) + 1)]


def _round_width(width: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def curve_chart(panel: Panel, lines: list[Series], *, description: str) -> str:
    """Train (thin) and held-out (thick) over steps, each labelled at its end."""
    with drawing_style():
        figure, axes = new_axes(NARROW, 200, (44, 62, 8, 36))
        if panel.baseline is not None:
            axes.axhline(panel.baseline, color=MUTED, linewidth=1.0, dashes=(4, 3))
        has_held_out = any(line.is_held_out for line in lines)
        for line in lines:
            _draw_curve(axes, line, has_held_out=has_held_out)
        if panel.is_share:
            axes.set_ylim(min(0.45, *(value for line in lines for value in line.values)) - 0.02, 1.02)
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:z.0f} %")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(_nice_ticks(4, integer=True))
        _quiet_y_axis(axes)
        _label_ends(axes, [line for line in lines if line.is_held_out or len(panel.metrics) == 1 or not has_held_out])
        return to_svg(figure, name=f"curve-{panel.name}", description=description)


def _draw_curve(axes: "Axes", line: Series, *, has_held_out: bool) -> None:
    colour = SENTINELS[line.colour]
    if line.is_held_out:
        dots = "o" if len(line.steps) <= MAX_DOTS else ""
        axes.plot(line.steps, line.values, color=colour, linewidth=2.2, marker=dots, markersize=5, markeredgewidth=0)
    else:
        marker = "o" if len(line.steps) == 1 else ""
        alpha = 0.75 if has_held_out else 1.0
        axes.plot(line.steps, line.values, color=colour, linewidth=1.2, alpha=alpha, marker=marker, markersize=3)


def _label_ends(axes: "Axes", lines: list[Series]) -> None:
    to_pixels = axes.transData
    lines = sorted(lines, key=lambda line: line.values[-1])
    heights = [float(to_pixels.transform((0, line.values[-1]))[1]) for line in lines]
    right = max(line.steps[-1] for line in lines)
    for line, height, shown in zip(lines, heights, _spread(heights), strict=True):
        offset = (8, shown - height)
        axes.annotate(
            line.label, (right, line.values[-1]), offset, "data", "offset points",
            color=SENTINELS[line.colour], va="center", annotation_clip=False,
        )  # fmt: skip


def _spread(heights: list[float]) -> list[float]:
    """Moves ascending heights apart to at least `LABEL_GAP`, keeping their centre."""
    spread = list(heights)
    for index in range(1, len(spread)):
        spread[index] = max(spread[index], spread[index - 1] + LABEL_GAP)
    shift = (sum(spread) - sum(heights)) / len(heights)
    return [height - shift for height in spread]


def _quiet_y_axis(axes: "Axes", *, is_count: bool = False) -> None:
    axes.yaxis.set_major_locator(_nice_ticks(4, integer=is_count))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _nice_ticks(count: int, *, integer: bool = False) -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator  # lazy: matplotlib takes a second to import

    return MaxNLocator(nbins=count, integer=integer, steps=[1, 2, 2.5, 5, 10])


def _tick(value: float, unit: Unit) -> str:
    return f"{value * unit.scale:z.0f} %" if unit.suffix.strip() == "%" else number(value)
