"""Chart of a share between two sides: one half is no difference."""

from prefopt.reports.charts.drawing import Box, circle, group, line, svg, text

BOX = Box(460, 108, left=12, right=12, top=34, bottom=34)
MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def balance_chart(value: float, bounds: tuple[float, float] | None, *, left: str, right: str, description: str) -> str:
    """Draws a share in [0, 1] as a dot with its interval, on a line whose middle says that there is no difference.

    Args:
        value: The share.
        bounds: Its interval; None without one.
        left: What is true towards 0.
        right: What is true towards 1.
        description: The chart in words.
    """
    x, middle, bottom = BOX.x(0.0, 1.0), BOX.top + BOX.inner[1] / 2, BOX.height - BOX.bottom
    parts = [line(x(mark), BOX.top, x(mark), bottom, "mark" if mark == 0.5 else "grid") for mark in MARKS]
    parts += [line(x(0.0), bottom, x(1.0), bottom, "grid")]
    parts += [text(x(mark), bottom + 18, f"{round(100 * mark)}") for mark in MARKS]
    parts += [
        text(x(0.0), BOX.top - 12, f"\u2190 {left}", anchor="start", style="word"),
        text(x(1.0), BOX.top - 12, f"{right} \u2192", anchor="end", style="word"),
    ]
    bar = "" if bounds is None else line(x.within(bounds[0]), middle, x.within(bounds[1]), middle, "interval")
    return svg(
        BOX, [*parts, group("tuned", bar + circle(x.within(value), middle, 7, "value"))], description=description
    )
