"""Horizontal bars, each below its label and its number."""

from dataclasses import dataclass

from prefopt.reports.charts.drawing import Box, group, has_span, svg, text
from prefopt.reports.charts.intervals import WIDTH

ROW_HEIGHT, THICKNESS = 34, 10
MIN_LENGTH = 2
"""Pixels: a value above zero is seen."""
MAX_LABEL = 52
"""Letters of a label that have room; of a longer one, such as a path, the end is shown."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A value of at least 0; `text` is the value as shown, `style` the CSS class of its colour."""

    label: str
    value: float
    text: str
    style: str = "tuned"


def bar_chart(bars: list[Bar], *, whole: float, description: str) -> str:
    """Draws bars from the left edge, the first on top; one of the value `whole` is as wide as the chart."""
    box = Box(WIDTH, ROW_HEIGHT * len(bars) + 4, left=0, right=0, top=0, bottom=0)
    x = box.x(0, whole if has_span(0, whole) else 1)
    parts = []
    for place, bar in enumerate(bars):
        words, top = ROW_HEIGHT * place + 14, ROW_HEIGHT * place + 20
        length = max(x.within(bar.value), MIN_LENGTH) if bar.value > 0 else 0
        drawn = [
            text(0, words, shorten(bar.label), anchor="start", style="word"),
            text(WIDTH, words, bar.text, anchor="end", style="word"),
            f'<rect class="track" x="0" y="{top}" width="{WIDTH}" height="{THICKNESS}"/>',
            f'<rect class="value" x="0" y="{top}" width="{length:.1f}" height="{THICKNESS}"/>',
        ]
        parts.append(group(bar.style, "".join(drawn)))
    return svg(box, parts, description=description)


def shorten(label: str) -> str:
    """Returns the label, or its end if it is too long."""
    return label if len(label) <= MAX_LABEL else f"\u2026{label[1 - MAX_LABEL :]}"
