"""Reads files into records: every row is converted from its format and checked, and what happened is counted."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import UNREADABLE, BadRows, require_usable
from prefopt.data.cells import parse_cells
from prefopt.data.columns import rename
from prefopt.data.files import iter_rows
from prefopt.data.formats import convert, detect_format, unread_columns
from prefopt.data.implicit_prompts import ImplicitNotes, agree_on_prompts
from prefopt.data.labels import LABELS, Labels
from prefopt.data.records import Record
from prefopt.data.rows import Shape, build_record
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.values import RowError, show_name

logger = logging.getLogger(__name__)

IMPLICIT_TEXT = Shape(("chosen", "rejected"), "text")
OTHER_SHAPE, UNWANTED = "other_shape", "unwanted"
"""Further kinds of rows that `data.on_bad` decides about."""
LABELLED = (("prompt", "completion"), ("messages",))
"""Fields of the rows that may have a KTO label."""
CHECKED: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "image", "images"),
    "sft": ("prompt", "image", "images", "rejected", *LABELS),
}
"""Columns that may not be part of a record, but whose values decide whether the row is accepted."""


@dataclass(kw_only=True)
class ReadNotes(ImplicitNotes):
    """Counts of what happened while rows were read."""

    num_rows: int = 0
    """Rows in the files."""
    num_parsed: int = 0
    """Rows with messages that were given as text in a cell, and parsed."""
    num_repeated_keys: int = 0
    """Rows with a repeated key in a column that is not read."""
    num_unreadable_skipped: int = 0
    """Rows that are no record, since something is wrong with them."""
    first_unreadable: str = ""
    """Place of the first of them, and what is wrong."""
    num_other_shape_skipped: int = 0
    """Rows of another format or shape than the first."""
    num_unwanted_skipped: int = 0
    """Demonstrations whose label says that they are to be avoided."""
    num_ties_skipped: int = 0
    """Rows of two answers of which none is preferred."""
    num_identical_skipped: int = 0
    num_empty_skipped: int = 0
    num_as_chat: int = 0
    """Rows of plain text that were converted to chats."""
    num_given_system: int = 0
    """Conversations that got the system prompt of the settings."""
    num_own_system: int = 0
    """Conversations that have one of their own, where the settings have one too."""
    num_duplicates: int = 0
    """Rows equal to an earlier row in prompt, completions and tools; they are kept."""
    ignored_columns: dict[str, int] = field(default_factory=dict)
    """For each column that is not read: the number of rows in which it has a value."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of some files, in order, and the counts of reading them."""

    records: list[Record]
    notes: ReadNotes
    ties: list[int]
    """Places of the rows that are no record, since neither answer is preferred: from 0, in the order of the files."""
    unreadable: list[int]
    """Places of the rows that are no record, since something is wrong with them."""


def read_records(
    spec: object,
    *,
    format: DataFormat,
    kind: Kind,
    columns: Mapping[str, str] | None = None,
    labels: Labels | None = None,
    bad: BadRows | None = None,
) -> ReadResult:
    """Reads and checks every row of `spec`.

    Pairs with identical or empty completions are kept here; `prefopt.data.defects` drops them.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.
        format: The format of the rows; `auto` detects it. All rows must have the same format: that of the first.
        kind: Whether rows are preference pairs or demonstrations.
        columns: prefopt's name of a column -> the file's, where they differ.
        labels: Gets the labels of the rows; the caller calls `drop_unwanted`. None: it is done here.
        bad: Gets the rows that cannot be read, of which the caller tells. None: they are refused here.

    Raises:
        UserError: A file cannot be read; or, with `bad=None`, some rows are invalid: it names file, line, field, the
            value found and the values allowed.
    """
    reader = _Reader(spec, format, kind, columns or {}, Labels() if labels is None else labels)
    told = BadRows("data.train", DataConfig(train=spec)) if bad is None else bad
    result = reader.read(told)
    if labels is None:
        result = replace(result, records=drop_unwanted(result.records, reader.labels, told, result.notes))
    if bad is None:
        require_usable(told)
    return result


def drop_unwanted(records: list[Record], labels: Labels, bad: BadRows, notes: ReadNotes) -> list[Record]:
    """Returns the records without those whose label in KTO's format says that the answer is to be avoided.

    Args:
        records: Demonstrations; pairs have no labels.
        labels: The labels of all files of the data set: only all together say whether a column is a label.
        bad: Gets the rows that are left out.
        notes: Their count is added to these.
    """
    unwanted = labels.find_unwanted()
    kept = []
    for record in records:
        if (found := unwanted.get(record.source)) is None:
            kept.append(record)
        else:
            bad.add(record.source, found, kind=UNWANTED, remedy=labels.remedy)
    notes.num_unwanted_skipped = bad.num_skipped(UNWANTED)
    return kept


class _Reader:
    """Reads the rows of one data set; all must have the format and shape of the first."""

    def __init__(
        self, spec: object, format: DataFormat, kind: Kind, columns: Mapping[str, str], labels: Labels
    ) -> None:
        self._spec, self._format, self._kind, self._columns, self.labels = spec, format, kind, columns, labels
        self._notes = ReadNotes()
        self._first: tuple[str, DataFormat, Shape] | None = None

    def read(self, bad: BadRows) -> ReadResult:
        records: list[Record] = []
        ties: list[int] = []
        unreadable: list[int] = []

        def leave_out(place: str, found: str, kind: str = UNREADABLE) -> None:
            unreadable.append(len(records) + len(ties) + len(unreadable))
            bad.add(place, found, kind=kind)

        unseen = dict(self._columns)
        for row, source in iter_rows(self._spec, leave_out):
            unseen = {name: other for name, other in unseen.items() if name not in row and other not in row}
            try:
                found = _read_row(row, source, self._format, self._kind, self._columns, self._notes)
            except RowError as error:
                leave_out(source, f"{error}{self._read_as()}")
                continue
            if found is None:
                ties.append(len(records) + len(ties) + len(unreadable))
                continue
            record, row_format, shape = found
            self._first = self._first or (source, row_format, shape)
            if (row_format, shape) != self._first[1:]:
                leave_out(source, self._tell_other_shape(row_format, shape), OTHER_SHAPE)
                continue
            if shape.fields in LABELLED:
                self.labels.add(row, source)
            records.append(record)
        for name, other in unseen.items():
            absent = f"no row has a column '{show_name(other)}' to be read as '{name}'"
            logger.warning("data.columns: %s: %s", self._spec, absent)
        bad.num_rows += len(records) + len(ties) + len(unreadable)
        return self._finish(records, ties, unreadable, bad)

    def _finish(self, records: list[Record], ties: list[int], unreadable: list[int], bad: BadRows) -> ReadResult:
        notes = self._notes
        if self._first is not None and self._first[2] == IMPLICIT_TEXT:
            records, implicit = agree_on_prompts(records)
            notes = replace(notes, **vars(implicit))
        notes.num_ties_skipped = len(ties)
        notes.num_rows = len(records) + len(ties) + len(unreadable)
        notes.num_unreadable_skipped = bad.num_skipped(UNREADABLE)
        notes.first_unreadable = bad.first_skipped(UNREADABLE)
        notes.num_other_shape_skipped = bad.num_skipped(OTHER_SHAPE)
        notes.ignored_columns = {show_name(name): count for name, count in sorted(notes.ignored_columns.items())}
        return ReadResult(records, notes, ties, unreadable)

    def _read_as(self) -> str:
        if self._first is None or self._format is not DataFormat.auto:
            return ""
        return f" (The rows before: {self._first[2]}.)"

    def _tell_other_shape(self, format: DataFormat, shape: Shape) -> str:
        assert self._first is not None, "it differs from the first"
        source, first_format, first_shape = self._first
        return (
            f"this row is {format.name} with {shape}, but {source} is {first_format.name} with {first_shape}. "
            "All rows of a data set must have one format: convert or drop the others."
        )


def _read_row(
    row: dict[str, object], source: str, format: DataFormat, kind: Kind, columns: Mapping[str, str], notes: ReadNotes
) -> tuple[Record, DataFormat, Shape] | None:
    """Returns a row's record, format and shape, and counts its unread columns in `notes`; None for a tie."""
    named = rename(row, columns)
    parsed = parse_cells(named)
    notes.num_parsed += parsed is not named
    row_format = detect_format(parsed, kind) if format is DataFormat.auto else format
    converted = convert(parsed, row_format, kind)
    if converted is None:
        return None
    record, shape = build_record(converted, kind, source)
    unread = unread_columns(parsed, row_format, kind, shape.fields)
    if isinstance(row, RepeatingRow):
        read_as = {source: name for name, source in columns.items()}
        row.require_whole(key for key in row if (name := read_as.get(key, key)) not in unread or name in CHECKED[kind])
        notes.num_repeated_keys += 1
    for column in unread:
        notes.ignored_columns[column] = notes.ignored_columns.get(column, 0) + 1
    return record, row_format, shape
