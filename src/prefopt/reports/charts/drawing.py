"""The building blocks of every chart, as SVG text: scales, ticks, axes, marks, compact paths.

A chart takes its colours and its font from `templates/charts.css`; `--c` is the colour that an element's class sets.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from prefopt.process.terminal import one_line

LARGEST, SMALLEST_SPAN = 1e300, 1e-300
"""A larger number is not drawn, as if it were infinite; a smaller range is drawn as a single value."""
FINE = 10
"""Units per pixel of a path: whole tenths of a pixel need half the bytes of decimals, without visible rounding."""
MIN_DIGITS, EXACT_DIGITS = 4, 17
"""Significant digits of a tick's label: at least the first, at most the second, which writes any number exactly."""
LETTERS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
"""Least size of an axis's largest tick -> the size that a letter stands for, and the letter."""


def is_drawable(value: float) -> bool:
    """Whether a chart can show `value`: it is finite and at most `LARGEST` in size."""
    return abs(value) <= LARGEST


def has_span(low: float, high: float) -> bool:
    """Whether [low, high] is wide enough for a scale."""
    return high - low > SMALLEST_SPAN


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to positions: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if has_span(self.low, self.high) else 0.5
        return self.start + share * (self.end - self.start)

    def within(self, value: float) -> float:
        """Returns the position of `value`, clamped to the ends of the scale."""
        low, high = sorted((self.start, self.end))
        return min(max(self(value), low), high)

    def all(self, values: Iterable[float]) -> list[float]:
        """Returns the positions of many values."""
        if not has_span(self.low, self.high):
            return [self(value) for value in values]
        slope = (self.end - self.start) / (self.high - self.low)
        shift = self.start - slope * self.low
        return [shift + slope * value for value in values]


@dataclass(frozen=True, slots=True)
class Box:
    """Size of a chart: `width` x `height` pixels; the other four fields are the margins around the plot area."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the plot area."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom

    def x(self, low: float, high: float) -> Scale:
        """Returns the scale from values to horizontal positions in the plot area."""
        return Scale(low, high, self.left, self.width - self.right)

    def y(self, low: float, high: float) -> Scale:
        """Returns the scale from values to vertical positions in the plot area."""
        return Scale(low, high, self.height - self.bottom, self.top)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart ready for a page; `svg` is markup in which all text that comes from a run is escaped."""

    title: str
    caption: str
    svg: str
    keys: tuple[str, ...] = ()
    """Legend: names of the groups, each also the CSS class of its colour; empty if the chart has labels instead."""
    style: str = ""
    """CSS classes."""
    least_width: int = 0
    """Pixels below which it is not shrunk but scrolled; 0: it is always shrunk."""


def text(x: float, y: float, content: str, *, anchor: str = "middle", style: str = "tick") -> str:
    """Returns an SVG text element; `content` is escaped."""
    shown = escape(one_line(content))
    return f'<text x="{x:.5g}" y="{y:.5g}" text-anchor="{anchor}" class="{style}">{shown}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.5g}" y1="{y1:.5g}" x2="{x2:.5g}" y2="{y2:.5g}" class="{style}"/>'


def of_row(row: int | None) -> str:
    """Returns the attribute by which a page's script finds the elements of a row of a ranking."""
    return "" if row is None else f' data-g="{row}"'


def circle(x: float, y: float, radius: float, style: str, row: int | None = None) -> str:
    return f'<circle class="{style}"{of_row(row)} cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def diamond(x: float, y: float, radius: int, style: str) -> str:
    r = radius
    return f'<path class="{style}" d="M{x:.1f} {y - r:.1f}l{r} {r}-{r} {r}-{r}-{r}z"/>'


def group(style: str, content: str, row: int | None = None) -> str:
    """Wraps `content` in a group with the colour of `style`."""
    return f'<g class="{style}"{of_row(row)}>{content}</g>'


def y_axis(box: Box, y: Scale, marks: Sequence[float], *, is_share: bool = False) -> list[str]:
    """Draws a line across the plot area at each of `marks`, with its label on the left."""
    parts = []
    for mark, label in zip(marks, tick_texts(marks, is_share=is_share), strict=True):
        parts.append(line(box.left, y(mark), box.width - box.right, y(mark), "grid"))
        parts.append(text(box.left - 7, y(mark) + 4, label, anchor="end"))
    return parts


def x_axis(box: Box, x: Scale, marks: Sequence[float], title: str, *, is_share: bool = False) -> list[str]:
    """Draws a label below the plot area at each of `marks`, and the title of the axis."""
    bottom = box.height - box.bottom
    labels = zip(marks, tick_texts(marks, is_share=is_share), strict=True)
    parts = [text(x(mark), bottom + 17, label) for mark, label in labels]
    return [*parts, text(box.left + box.inner[0] / 2, bottom + 34, title)] if title else parts


def svg(box: Box, parts: Iterable[str], *, description: str) -> str:
    """Returns the whole chart; `description` is the text for screen readers."""
    label = escape(one_line(description))
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {box.width} {box.height}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def plot_area(box: Box, parts: Iterable[str]) -> str:
    """Returns the plot area, with `FINE` units per pixel and y downwards; a page's CSS may clip what lies outside."""
    width, height = box.inner
    return (
        f'<svg class="plot" x="{box.left}" y="{box.top}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width * FINE} {height * FINE}">' + "\n".join(parts) + "</svg>"
    )


def steps(positions: Sequence[float]) -> str:
    """Writes positions as whole numbers: the first, then the difference to each next one."""
    return " ".join(map(str, _steps(positions)))


def path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Returns the `d` attribute of a polyline through rounded points, in relative steps."""
    (x, *across), (y, *up) = _steps(xs), _steps(ys)
    rest = " ".join([f"{dx} {dy}" for dx, dy in zip(across, up, strict=True)])
    return f"M{x} {y}l{rest or '0 0'}".replace(" -", "-")


def _steps(positions: Sequence[float]) -> list[int]:
    whole = list(map(round, positions))
    return whole[:1] + [b - a for a, b in pairwise(whole)]


def ticks(low: float, high: float, count: int, *, is_whole: bool = False) -> list[float]:
    """Returns at most `count` + 1 round numbers in [low, high]; with `is_whole` only integers."""
    if not has_span(low, high):
        return [low]
    width = round_up((high - low) / count)
    if is_whole and width % 1:
        width = max(1.0, 2 * width)  # 2.5 becomes 5
    first = math.ceil(low / width - 1e-9)
    return [index * width for index in range(first, math.floor(high / width + 1e-9) + 1)]


def round_up(width: float) -> float:
    """Rounds up to 1, 2, 2.5, 5 or 10 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= width * (1 - 1e-9))


def tick_texts(marks: Sequence[float], *, is_share: bool = False) -> list[str]:
    """Formats the labels of an axis: percent for shares, large numbers all with the same k, M or G.

    All labels have as many significant digits, at least `MIN_DIGITS`, as keep the error of each of them below 1 % of
    the distance between two ticks: labels of different ticks differ.
    """
    largest = max(map(abs, marks), default=0.0)
    size, unit = next(((size, letter) for least, size, letter in LETTERS if largest >= least), (1.0, ""))
    values = [100 * mark if is_share else mark / size for mark in marks]
    distance = min((b - a for a, b in pairwise(sorted(values)) if b > a), default=math.inf)
    for digits in range(MIN_DIGITS, EXACT_DIGITS + 1):
        texts = [f"{value:.{digits}g}" for value in values]
        if all(abs(float(written) - value) < distance / 100 for written, value in zip(texts, values, strict=True)):
            break
    return [f"{written} %" if is_share else f"{written}{unit if float(written) else ''}" for written in texts]


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """Returns an axis range with a small margin: all of `values`, or the middle 96 % if outliers would squeeze it."""
    ordered = sorted(values)
    cut = len(ordered) // 50
    low, high, inner_low, inner_high = ordered[0], ordered[-1], ordered[cut], ordered[-1 - cut]
    if high - low > 3 * (inner_high - inner_low) > 0:
        low = max(low, inner_low - 0.25 * (inner_high - inner_low))
        high = min(high, inner_high + 0.25 * (inner_high - inner_low))
    return with_air(low, high)


def with_air(low: float, high: float) -> tuple[float, float]:
    """Widens a range by a small margin, so that nothing is drawn on an edge."""
    air = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


def spread_out(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart to at least `gap` where there is room, within [low, high], keeping their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [min(max(heights[index], low), high) for index in order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    if placed and placed[-1] > high:
        placed[-1] = high
        for index in range(len(placed) - 2, -1, -1):
            placed[index] = min(placed[index], placed[index + 1] - gap)
    result = [0.0] * len(heights)
    for position, index in zip(placed, order, strict=True):
        result[index] = position
    return result
