"""The comparison in the terminal: one row per configuration, best first, then the runs without a rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from prefopt.comparison.metrics import ACCURACY, Metric
from prefopt.comparison.ranking import WITHIN_NOISE, Comparison, Row
from prefopt.comparison.records import DONE, RUNNING, RunRecord
from prefopt.comparison.settings import MISSING, shown
from prefopt.comparison.wording import (
    OTHER_DATA,
    clean,
    decision_text,
    describe_noise,
    last_held_out,
    name_of,
    rank_text,
    seeds_text,
    speed_text,
    spread_cell,
    state_text,
    summary_text,
)
from prefopt.terminal import Terminal

NAME_WIDTH, SETTING_WIDTH, MESSAGE_WIDTH = 40, 28, 60
PADDING = 2
"""Blanks behind a column, one of which is the table's own."""
WHOLE = 4000
"""Characters of a line that no terminal cuts."""
NAMES, NARROW_NAME = ("name", "run"), 14
"""Columns that are narrowed before any is left out, and how far."""
DECISION_STYLES = {"ship": "green", "do not ship": "red", "undecided": "yellow"}
VERDICT_STYLES = {"best": "bold green", WITHIN_NOISE: "green", "worse": "dim"}
STATE_STYLES = {DONE: "green", RUNNING: "blue", "failed": "red", "diverged": "red", "preempted": "yellow"}
EXPENDABLE = (
    "outside_training_s", "pairs_per_s", "train_time_s", "message", "chosen_change", "length_change", "mean_margin",
    "name", "decision",
)  # fmt: skip
"""Columns that a narrow terminal goes without, first to last."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; `key` names it in `EXPENDABLE`."""

    key: str
    head: str
    cells: list[Text]
    is_number: bool = True

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.head, *(cell.plain for cell in self.cells))))

    @property
    def min_width(self) -> int:
        return min(self.width, NARROW_NAME) if self.key in NAMES else self.width

    def narrowed(self, width: int) -> "Column":
        """The column with its cells shortened to `width`, but not below `NARROW_NAME`."""
        cells = [_shortened(cell.plain, max(width, NARROW_NAME)) for cell in self.cells]
        return Column(self.key, self.head, cells, self.is_number)


def render_table(comparison: Comparison, *, width: int | None, limit: int) -> Group:
    """The comparison as rich shows it.

    Args:
        comparison: What is shown.
        width: Characters of a line; None: as many as the table takes.
        limit: Rows of each of the two tables, at most.
    """
    head = Text.assemble((clean(comparison.title), "bold"), f"  {summary_text(comparison)}")
    parts: list[Table | Text] = [head]
    notes = []
    rows, unranked = comparison.rows[:limit], comparison.unranked[:limit]
    if rows:
        columns, left_out = fit(_ranked_columns(comparison, rows), width)
        parts.append(_as_table(columns))
        notes += [f"No room here for {', '.join(left_out)}: compare.csv has every column."] if left_out else []
    if unranked:
        parts.append(_as_table(fit(_unranked_columns(comparison, unranked), width)[0]))
    num_hidden = len(comparison.rows) - len(rows), len(comparison.unranked) - len(unranked)
    if any(num_hidden):
        notes.append(
            f"Not shown here: {num_hidden[0]:,} ranked rows, {num_hidden[1]:,} other runs (--rows shows more)."
        )
    warnings = [Text(clean(warning), "yellow") for warning in comparison.warnings]
    remarks = [Text(note, "dim") for note in (*notes, *describe_noise(comparison))]
    return Group(*parts, *warnings, *remarks, *(Text(clean(link)) for link in comparison.links))


def print_table(comparison: Comparison, console: Console, *, limit: int) -> None:
    """Prints the comparison: fitted to a terminal, whole to anything else."""
    if console.is_terminal:
        console.print(render_table(comparison, width=console.width, limit=limit))
    else:
        wide = Terminal(file=console.file, width=WHOLE, color_system=None)
        wide.print(render_table(comparison, width=None, limit=limit), crop=False)


def fit(columns: Sequence[Column], width: int | None) -> tuple[list[Column], list[str]]:
    """The columns that a line of `width` characters has room for, and the heads of the others."""
    kept, left_out = list(columns), []
    for key in EXPENDABLE:
        if width is None or sum(column.min_width + PADDING for column in kept) <= width:
            break
        left_out += [column.head for column in kept if column.key == key]
        kept = [column for column in kept if column.key != key]
    if width is not None:
        spare = width - sum(column.width + PADDING for column in kept)
        kept = [column.narrowed(column.width + spare) if column.key in NAMES else column for column in kept]
    return kept, left_out


def _ranked_columns(comparison: Comparison, rows: Sequence[Row]) -> list[Column]:
    columns = [
        Column("rank", "#", [Text(rank_text(row)) for row in rows]),
        Column("name", "run", [_shortened(name_of(row), NAME_WIDTH) for row in rows], is_number=False),
    ]
    columns += [
        Column(key, clean(head), [_shortened(shown(row.group.settings, key), SETTING_WIDTH) for row in rows])
        for key, head in comparison.settings.items()
    ]
    if any(row.group.num_planned > 1 for row in rows):
        columns.append(Column("seeds", "seeds", [Text(seeds_text(row)) for row in rows]))
    columns += [
        Column(metric.key, _head(metric, comparison.metric), [_number(metric, row, comparison.metric) for row in rows])
        for metric in comparison.columns
    ]
    decisions = [decision_text(row) for row in rows]
    verdicts = [row.verdict + (OTHER_DATA if row.has_other_data else "") for row in rows]
    return [
        *columns,
        Column("decision", "report", [Text(d, DECISION_STYLES.get(d, "")) for d in decisions], is_number=False),
        Column(
            "verdict",
            "against #1",
            [Text(text, VERDICT_STYLES.get(row.verdict, "")) for text, row in zip(verdicts, rows, strict=True)],
            is_number=False,
        ),
    ]


def _unranked_columns(comparison: Comparison, runs: Sequence[RunRecord]) -> list[Column]:
    columns = [Column("run", "not ranked", [_shortened(clean(run.name), NAME_WIDTH) for run in runs], is_number=False)]
    columns += [
        Column(key, clean(head), [_shortened(shown(run.settings, key), SETTING_WIDTH) for run in runs])
        for key, head in comparison.settings.items()
    ]
    states = [Text(state_text(run), STATE_STYLES.get(run.state, "")) for run in runs]
    return [
        *columns,
        Column("state", "state", states, is_number=False),
        Column("step", "step", [Text(MISSING if run.step is None else str(run.step)) for run in runs]),
        Column("held_out", "last held-out evaluation", [Text(last_held_out(run)) for run in runs], is_number=False),
        Column("train_time_s", "time", [Text(speed_text(run, "train_time_s")) for run in runs]),
        Column("pairs_per_s", "pairs/s", [Text(speed_text(run, "pairs_per_s")) for run in runs]),
        Column("message", "why", [_shortened(clean(run.message), MESSAGE_WIDTH) for run in runs], is_number=False),
    ]


def _as_table(columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, PADDING - 1, 0, 0), header_style="dim", show_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(Text(column.head), justify=justify, no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _head(metric: Metric, ranked_by: Metric) -> str:
    return f"{metric.label} \u25bc" if metric is ranked_by else metric.label


def _number(metric: Metric, row: Row, ranked_by: Metric) -> Text:
    """The value, with its interval in the columns that decide."""
    found = spread_cell(metric, row.group)
    if not found.interval or (metric.key not in (ACCURACY, ranked_by.key) and len(row.group.members) == 1):
        return Text(found.value)
    return Text.assemble(found.value, (f" ({found.interval})", "dim"))


def _shortened(text: str, width: int) -> Text:
    """`text` in at most `width` cells: its middle is left out, since names differ at their ends."""
    text = clean(text)
    if cell_len(text) <= width:
        return Text(text)
    half = (width - 1) // 2
    return Text(f"{set_cell_size(text, half)}\u2026{text[-half:]}")
