"""Histograms whose bins are aligned on zero."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from prefopt.reports.charts.drawing import Box, Scale, has_span, line, svg, text, ticks, x_axis, y_axis

HEIGHT = 230
TYPICAL_BINS = 24
MIN_BINS_PER_SIDE = 2


def histogram(groups: dict[str, list[float]], *, x_label: str, description: str, width: int) -> str:
    """Draws the number of pairs per bin, with a line at zero and the last group on top; no bin straddles zero.

    Args:
        groups: CSS class of the colour -> values; those beyond the axis count in the outer bins.
        x_label: Title of the x axis.
        description: Text for screen readers.
        width: Width in pixels.
    """
    edges = bin_edges([value for values in groups.values() for value in values])
    counts = {style: count_in(values, edges) for style, values in groups.items()}
    box = Box(width, HEIGHT, left=40, right=14, top=22, bottom=40)
    x, y = box.x(edges[0], edges[-1]), box.y(0, 1.05 * max(map(max, counts.values())))
    zero, middle = x(0), box.top + box.inner[1] / 2
    parts = [
        *y_axis(box, y, ticks(0, y.high, 4, is_whole=True)),
        *x_axis(box, x, ticks(edges[0], edges[-1], 6), x_label),
        f'<g transform="rotate(-90)">{text(-middle, 11, "pairs")}</g>',
        *(outline(style, found, edges, x, y) for style, found in counts.items()),
        line(zero, box.top, zero, box.height - box.bottom, "zero"),
        text(zero - 6, box.top - 6, "\u2190 rejected", anchor="end"),
        text(zero + 6, box.top - 6, "chosen \u2192", anchor="start"),
    ]
    return svg(box, parts, description=description)


def outline(style: str, counts: Sequence[int], edges: Sequence[float], x: Scale, y: Scale) -> str:
    """Outline of the bars, from the first bin that is not empty to the last one."""
    filled = [place for place, count in enumerate(counts) if count]
    tops = "".join(f"V{y(counts[i]):.1f}H{x(edges[i + 1]):.1f}" for i in range(filled[0], filled[-1] + 1))
    return f'<path class="{style} area" d="M{x(edges[filled[0]]):.1f} {y(0):.1f}{tops}V{y(0):.1f}"/>'


def count_in(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Counts the values in each bin [a, b); those beyond the outer edges count in the outer bins."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return counts


def bin_edges(values: Sequence[float]) -> list[float]:
    """Returns the edges of bins of a round width, aligned on zero; at most 0.5 % of values per side lie outside."""
    ordered = sorted(values)
    cut = len(ordered) // 200
    low, high = min(ordered[cut], 0.0), max(ordered[-1 - cut], 0.0)
    if not has_span(low, high):
        return [-1.0, 0.0, 1.0]
    width = _round_width((high - low) / TYPICAL_BINS)
    first, last = math.floor(low / width), math.ceil(high / width)
    return [index * width for index in range(min(first, -MIN_BINS_PER_SIDE), max(last, MIN_BINS_PER_SIDE) + 1)]


def _round_width(width: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)
