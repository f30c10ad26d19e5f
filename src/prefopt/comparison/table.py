"""The comparison in the terminal: one row per configuration, best first, then the runs without a rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from prefopt.comparison.ranking import WITHIN_NOISE, Comparison, Row
from prefopt.comparison.records import DONE, RUNNING, RunRecord
from prefopt.comparison.settings import MISSING, Settings, shown
from prefopt.comparison.wording import (
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
    verdict_text,
)
from prefopt.evaluation.metrics import (
    ACCURACY,
    CHOSEN_CHANGE,
    KL,
    LENGTH_CHANGE,
    LOSS,
    MARGIN,
    OUTSIDE,
    PAIRS_PER_S,
    TRAIN_TIME,
    WIN_RATE,
    Metric,
)
from prefopt.process.terminal import Terminal, one_line

NAME_WIDTH, SETTING_WIDTH, MESSAGE_WIDTH = 40, 28, 60
PADDING = 2
"""Spaces after a column; rich adds one of them itself."""
WHOLE = 4000
"""Characters of a line if the output is no terminal, so that nothing is cut."""
NAMES, NARROW_NAME = ("name", "run"), 14
"""Columns that are narrowed before any column is left out, and their least width."""
LONG_SETTING, FIRST_SETTINGS = 20, 3
"""Width above which a column of settings is left out early, and how many of the other settings are left out last."""
DECISION_STYLES = {"ship": "green", "do not ship": "red", "undecided": "yellow"}
VERDICT_STYLES = {"best": "bold green", WITHIN_NOISE: "green", "better": "yellow", "worse": "dim"}
STATE_STYLES = {DONE: "green", RUNNING: "blue", "failed": "red", "diverged": "red", "preempted": "yellow"}
EXPENDABLE = (
    OUTSIDE,
    PAIRS_PER_S,
    TRAIN_TIME,
    "message",
    CHOSEN_CHANGE,
    LENGTH_CHANGE,
    MARGIN,
    LOSS,
    KL,
)
"""Columns that a narrow terminal leaves out, in this order; the metric that ranks the rows always stays."""
WRAPPED = (*NAMES, WIN_RATE, ACCURACY, "decision", "verdict", "state", "step", "held_out")
"""Columns that are never left out; their cells are wrapped if there is no room."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        key: The key of a metric, the dotted name of a setting, or a word of this module such as `rank`.
        head: The header.
        cells: One per row.
        is_number: Whether it is right-aligned.
    """

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

    @property
    def is_constant(self) -> bool:
        return len({cell.plain for cell in self.cells}) == 1

    def narrowed(self, width: int) -> "Column":
        """Narrows the column to `width` characters, at least `NARROW_NAME`; wraps names that would look the same."""
        width = max(width, NARROW_NAME)
        whole = [cell.plain for cell in self.cells]
        cells = [_shortened(text, width) for text in whole]
        if not _are_as_distinct([cell.plain for cell in cells], whole):
            cells = [Text("\n".join(chop_cells(text, width))) for text in whole]
        return Column(self.key, self.head, cells, self.is_number)


def render_table(comparison: Comparison, *, width: int | None, limit: int) -> Group:
    """Returns the comparison as a renderable for rich.

    Args:
        comparison: The comparison to show.
        width: Characters of a line; None: as many as the table needs.
        limit: Most rows of each of the two tables.
    """
    head = Text.assemble((one_line(comparison.title), "bold"), f"  {summary_text(comparison)}")
    parts: list[Table | Text] = [head]
    left_out: list[str] = []
    rows, unranked = comparison.rows[:limit], comparison.unranked[:limit]
    tables = [ranked_columns(comparison, rows)] if rows else []
    tables += [_unranked_columns(comparison, unranked)] if unranked else []
    for columns in tables:
        kept, others = fit(columns, width, expendable(columns, comparison))
        parts.append(_as_table(kept))
        left_out += others
    what = ", ".join(dict.fromkeys(left_out))
    notes = [f"No room here for {what}: compare.csv has every column."] if left_out else []
    num_hidden = len(comparison.rows) - len(rows), len(comparison.unranked) - len(unranked)
    if any(num_hidden):
        notes.append(
            f"Not shown here: {num_hidden[0]:,} ranked rows, {num_hidden[1]:,} other runs (--rows shows more)."
        )
    warnings = [Text(one_line(warning), "yellow") for warning in comparison.warnings]
    remarks = [Text(note, "dim") for note in (*notes, *describe_noise(comparison))]
    return Group(*parts, *warnings, *remarks, *(Text(one_line(link)) for link in comparison.links))


def print_table(comparison: Comparison, console: Console, *, limit: int) -> None:
    """Prints the comparison, fitted to the width of a terminal; in full if the output is no terminal."""
    if console.is_terminal:
        console.print(render_table(comparison, width=console.width, limit=limit))
    else:
        wide = Terminal(file=console.file, width=WHOLE, color_system=None)
        wide.print(render_table(comparison, width=None, limit=limit), crop=False)


def fit(columns: Sequence[Column], width: int | None, order: Sequence[str]) -> tuple[list[Column], list[str]]:
    """Returns the columns that fit into a line of `width` characters, and the headers of the others.

    Args:
        columns: All of them.
        width: Characters of a line; None: no limit.
        order: Keys of the columns that may be left out, in the order of leaving out.
    """
    if width is None:
        return list(columns), []
    kept, left_out = list(columns), []
    for key in order:
        if sum(column.min_width + PADDING for column in kept) <= width:
            break
        left_out += [column.head for column in kept if column.key == key]
        kept = [column for column in kept if column.key != key]
    spare = width - sum(column.width + PADDING for column in kept)
    return [column.narrowed(column.width + spare) if column.key in NAMES else column for column in kept], left_out


def expendable(columns: Sequence[Column], comparison: Comparison) -> list[str]:
    """Returns the keys of the columns that a narrow terminal leaves out, in this order.

    First are settings that are the same in all rows, long ones, and those far down in the configuration: a run's name
    stands for them. Then come the less important metrics. Last are the first few settings: a sweep is about them.
    """
    settings = [column for column in columns if column.key in comparison.settings]
    first = [c.key for c in settings if not c.is_constant and c.width <= LONG_SETTING][:FIRST_SETTINGS]
    others = sorted(
        (column for column in reversed(settings) if column.key not in first),
        key=lambda column: (not column.is_constant, column.width <= LONG_SETTING),
    )
    metrics = [key for key in EXPENDABLE if key != comparison.metric.key]
    return [*(column.key for column in others), *metrics, *reversed(first), "seeds"]


def ranked_columns(comparison: Comparison, rows: Sequence[Row]) -> list[Column]:
    columns = [
        Column("rank", "#", [Text(rank_text(row)) for row in rows]),
        Column("name", "run", [_shortened(name_of(row), NAME_WIDTH) for row in rows], is_number=False),
    ]
    columns += [
        Column(key, one_line(head), _setting_cells([row.group.settings for row in rows], key))
        for key, head in comparison.settings.items()
    ]
    if any(row.group.num_planned > 1 for row in rows):
        columns.append(Column("seeds", "seeds", [Text(seeds_text(row)) for row in rows]))
    columns += [
        Column(metric.key, _head(metric, comparison.metric), [_number(metric, row, comparison.metric) for row in rows])
        for metric in comparison.columns
    ]
    decisions = [decision_text(row) for row in rows]
    verdicts = [verdict_text(row) for row in rows]
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
    columns = [Column("run", "not ranked", [_shortened(run.name, NAME_WIDTH) for run in runs], is_number=False)]
    columns += [
        Column(key, one_line(head), _setting_cells([run.settings for run in runs], key))
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
        Column("message", "why", [_shortened(run.message, MESSAGE_WIDTH) for run in runs], is_number=False),
    ]


def _as_table(columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, PADDING - 1, 0, 0), header_style="dim", show_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column.is_number else "left"
        is_wrapped = column.key in WRAPPED
        table.add_column(Text(column.head), justify=justify, no_wrap=not is_wrapped, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _head(metric: Metric, ranked_by: Metric) -> str:
    return f"{metric.label} \u25bc" if metric is ranked_by else metric.label


def _number(metric: Metric, row: Row, ranked_by: Metric) -> Text:
    """Cell of a metric: its value; for accuracy, win rate, the ranking metric and several seeds with the interval."""
    found = spread_cell(metric, row.group)
    if not found.interval or (metric.key not in (ACCURACY, WIN_RATE, ranked_by.key) and len(row.group.members) == 1):
        return Text(found.value)
    return Text.assemble(found.value, (f" ({found.interval})", "dim"))


def _setting_cells(rows: Sequence[Settings], key: str) -> list[Text]:
    """Cells of a setting; long paths are reduced to their last parts if these are as distinct."""
    whole = [shown(settings, key) for settings in rows]
    lasts = [text.rpartition("/")[2] or text for text in whole]
    is_long = max(map(cell_len, whole)) > LONG_SETTING
    return [
        _shortened(text, SETTING_WIDTH) for text in (lasts if is_long and _are_as_distinct(lasts, whole) else whole)
    ]


def _are_as_distinct(texts: Sequence[str], originals: Sequence[str]) -> bool:
    return len(set(texts)) == len(set(originals))


def _shortened(text: str, width: int) -> Text:
    """Shortens `text` to at most `width` cells; the middle is left out, since names differ at their ends."""
    text = one_line(text)
    if cell_len(text) <= width:
        return Text(text)
    half = (width - 1) // 2
    return Text(f"{set_cell_size(text, half)}\u2026{text[-half:]}")
