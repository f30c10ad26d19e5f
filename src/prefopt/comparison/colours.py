"""How the rows of a ranking are told apart in every chart of a comparison."""

from prefopt.reports.charts.drawing import group

NUM_COLOURS = 5
NUM_BEST = 2 * NUM_COLOURS
"""Rows that are drawn in colour: five colours, solid and dashed, so that no two look alike to any eye."""


def row_style(row: int) -> str:
    """CSS classes of the row at this place of the ranking; all rows behind the best ones have the same."""
    if row >= NUM_BEST:
        return "rest"
    return f"best k{row % NUM_COLOURS}" + (" dashed" if row >= NUM_COLOURS else "")


def row_group(row: int, content: str) -> str:
    """`content` in the colour of a row."""
    return group(row_style(row), content, row)
