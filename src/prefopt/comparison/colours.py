"""Colours and line styles that tell the rows of a ranking apart in every chart of a comparison."""

from prefopt.reports.charts.drawing import group

NUM_COLOURS = 5
NUM_BEST = 2 * NUM_COLOURS
"""Number of rows drawn in colour: five colours, solid and dashed, distinct for colour-blind readers too."""


def row_style(row: int) -> str:
    """Returns the CSS classes of the row at this index of the ranking; all rows after the best ones share one."""
    if row >= NUM_BEST:
        return "rest"
    return f"best k{row % NUM_COLOURS}" + (" dashed" if row >= NUM_COLOURS else "")


def row_group(row: int, content: str) -> str:
    """Wraps `content` in a group with the colour of a row."""
    return group(row_style(row), content, row)
