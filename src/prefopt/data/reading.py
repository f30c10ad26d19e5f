"""Reads files into records: every row is converted from its format and checked, and what happened is counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.config.mixture import parts_of, paths_of
from prefopt.config.schema import DataConfig
from prefopt.data.arrow import OnBad, Row
from prefopt.data.as_chat import from_system_column, is_question, to_chat
from prefopt.data.bad_rows import UNREADABLE, BadRows, require_usable
from prefopt.data.cells import parse_cells
from prefopt.data.columns import rename
from prefopt.data.files import iter_rows, refuse_repeated
from prefopt.data.formats import convert, detect_format, unread_columns
from prefopt.data.formats.format import PAIRS
from prefopt.data.formats.ratings import RANKED
from prefopt.data.implicit_prompts import ImplicitNotes, agree_on_prompts
from prefopt.data.labels import LABELS, Labels
from prefopt.data.pairing import METADATA, Pair, Pairing, PairRule
from prefopt.data.records import PreferencePair, Record
from prefopt.data.rows import Shape, build_record
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.table import Table, TableWriter
from prefopt.data.tags import read_tag
from prefopt.data.values import RowError, show_name, show_names
from prefopt.process.errors import UserError

IMPLICIT_TEXT = Shape(("chosen", "rejected"), "text")
OTHER_SHAPE, UNWANTED = "other_shape", "unwanted"
"""Further kinds of rows that `data.on_bad` decides about."""
ONE_FORMAT = "All rows of a data set must have one format: convert or drop the others."
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
    num_joined: int = 0
    """Pairs that were joined of two rows with a label each."""
    num_waiting_skipped: int = 0
    """Rows with a label for which there is none of the other label."""
    num_metadata_scores: int = 0
    """Rows with the scores of a pair in the column `metadata`, of which nothing else is read."""
    num_close_skipped: int = 0
    """Pairs whose margin is below the one of the settings."""
    num_identical_skipped: int = 0
    num_empty_skipped: int = 0
    num_over_limit: int = 0
    """Rows that are not used, since there are more than `data.max_rows`."""
    num_as_chat: int = 0
    """Rows of plain text that were converted to chats."""
    num_given_system: int = 0
    """Conversations that got the system prompt of the settings."""
    num_own_system: int = 0
    """Conversations that have one of their own, where the settings have one too."""
    num_duplicates: int = 0
    """Rows equal to an earlier row in prompt, completions and tools; they are kept."""
    unclear_labels: dict[str, str] = field(default_factory=dict)
    """Column that may be a label of two words which are not known -> what they are, in all files of the data set."""
    ignored_columns: dict[str, int] = field(default_factory=dict)
    """For each column that is not read: the number of rows in which it has a value."""
    absent_columns: dict[str, str] = field(default_factory=dict)
    """prefopt's name of each column of `data.columns` that no row has -> the name that was looked for."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of some files, in order, and the counts of reading them."""

    records: Table[Record]
    notes: ReadNotes
    ties: list[int]
    """Places of the rows that are no record, since neither answer is preferred: from 0, in the order of the files."""
    unreadable: list[int]
    """Places of the rows that are no record, since something is wrong with them."""
    numbers: list[int]
    """For each record the place of its row, as in `ties`; of one that is made of two rows, the later one."""


def read_records(
    spec: object,
    *,
    format: DataFormat,
    kind: Kind,
    columns: Mapping[str, str] | None = None,
    labels: Labels | None = None,
    pairs: PairRule | None = None,
    as_chat: bool = False,
    tag: str | None = None,
    bad: BadRows | None = None,
) -> ReadResult:
    """Reads and checks every row of `spec`.

    Pairs with identical or empty completions are kept here; `prefopt.data.defects` drops them.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, `hub:<id>[:<split>]`, or a mixture of these, whose
            rows get the names of their parts. What is used of them, and how often, is decided in `prefopt.data.mix`.
        format: The format of the rows; `auto` detects it. All rows must have the same format: that of the first.
        kind: Whether rows are preference pairs or demonstrations.
        columns: prefopt's name of a column -> the file's, where they differ.
        pairs: Which pairs are made of rows with several answers, and which are left out. None: as the defaults say.
        as_chat: Whether rows of text with a column `system` are read as chats, and not refused.
        labels: Gets the labels of the rows; the caller calls `drop_unwanted`. None: it is done here.
        tag: The column that holds the tag of a row; None: rows have no tags.
        bad: Gets the rows that cannot be read, of which the caller tells. None: they are refused here.

    Raises:
        UserError: A file cannot be read; or, with `bad=None`, some rows are invalid: it names file, line, field, the
            value found and the values allowed.
    """
    rule = PairRule() if pairs is None else pairs
    gathered = Labels() if labels is None else labels
    reader = _Reader(spec, format, kind, columns or {}, gathered, Pairing(rule), as_chat, tag)
    told = BadRows("data.train", DataConfig(train=spec)) if bad is None else bad
    result = reader.read(told)
    if labels is None:
        result = replace(result, records=drop_unwanted(result.records, reader.labels, told, result.notes))
    if bad is None:
        require_usable(told)
    return result


def drop_unwanted(records: Table[Record], labels: Labels, bad: BadRows, notes: ReadNotes) -> Table[Record]:
    """Returns the records without those whose label in KTO's format says that the answer is to be avoided.

    Args:
        records: Demonstrations; pairs have no labels.
        labels: The labels of all files of the data set: only all together say whether a column is a label.
        bad: Gets the rows that are left out.
        notes: Their count is added to these.
    """
    notes.unclear_labels = labels.find_unclear()
    unwanted = labels.find_unwanted()
    if not unwanted:
        return records
    is_kept = np.ones(len(records), dtype=bool)
    for row, record in enumerate(records):
        if (found := unwanted.get(record.source)) is not None:
            bad.add(record.source, found, kind=UNWANTED, remedy=labels.remedy)
            is_kept[row] = False
    notes.num_unwanted_skipped = bad.num_skipped(UNWANTED)
    return records.select(is_kept)


class _OtherShapeError(RowError):
    """A row has another format or shape than the first."""


class _Reader:
    """Reads the rows of one data set; all of it, or of a part of a mixture, must have the shape of the first."""

    def __init__(
        self,
        spec: object,
        format: DataFormat,
        kind: Kind,
        columns: Mapping[str, str],
        labels: Labels,
        pairing: Pairing,
        as_chat: bool,
        tag: str | None,
    ) -> None:
        self._spec, self._format, self._kind, self._columns = spec, format, kind, columns
        self.labels, self._pairing, self._as_chat, self._tag = labels, pairing, as_chat, tag
        self._parts = parts_of(spec, "data.train")
        self._notes = ReadNotes()
        self._num_system_chats = 0
        self._first: tuple[str, DataFormat, Shape | None] | None = None
        """Place, format and shape of the first row; its shape is unknown until a pair is made."""
        self._shapes: set[Shape] = set()

    def read(self, bad: BadRows) -> ReadResult:
        writer = TableWriter[Record]()
        ties: list[int] = []
        unreadable: list[int] = []
        numbers: list[int] = []
        notes = self._notes

        def leave_out(place: str, found: str, kind: str = UNREADABLE) -> None:
            unreadable.append(notes.num_rows)
            notes.num_rows += 1
            bad.add(place, found, kind=kind)

        refuse_repeated(
            (path for path in paths_of(self._spec) if isinstance(path, (str, Path)) and str(path)), bad.setting
        )
        unseen = dict(self._columns)
        untagged: Row | None = None
        has_tag = self._tag is None
        for row, source, name in self._rows(leave_out):
            unseen = {name: other for name, other in unseen.items() if name not in row and other not in row}
            has_tag = has_tag or self._tag in row
            untagged = untagged or row
            try:
                tag = "" if self._tag is None else read_tag(row, self._tag)
                row_format, found = self._read_row(row, source)
                self._require_format(source, row_format)
                self._first = self._first or (source, row_format, None)
                made = None if found is None else [self._alike(source, *each) for each in found]
            except _OtherShapeError as error:
                leave_out(source, str(error), OTHER_SHAPE)
                continue
            except RowError as error:
                leave_out(source, f"{error}{self._read_as()}")
                continue
            if made is None:
                ties.append(notes.num_rows)
            for record, shape in made or ():
                if shape.fields in LABELLED:
                    self.labels.add(row, source)
                writer.append(replace(record, slice=name, tag=tag) if name or tag else record)
                numbers.append(notes.num_rows)
            notes.num_rows += 1
        if not has_tag and untagged:
            raise UserError(
                f"data.tag={self._tag}: no row of {bad.setting} has such a column. The first has "
                f"{show_names(untagged)}: name one of these, or leave data.tag out."
            )
        notes.absent_columns = {name: show_name(other) for name, other in unseen.items()}
        bad.num_rows += notes.num_rows
        notes.num_ties_skipped = len(ties)
        notes.num_unreadable_skipped = bad.num_skipped(UNREADABLE)
        notes.first_unreadable = bad.first_skipped(UNREADABLE)
        notes.num_other_shape_skipped = bad.num_skipped(OTHER_SHAPE)
        records = self._finish(writer.table())
        return ReadResult(records, self._notes, ties, unreadable, numbers)

    def _rows(self, on_bad: OnBad) -> Iterator[tuple[Row, str, str]]:
        """Yields each row with its place and the name of its part, which is empty if there are no parts."""
        if not self._parts:
            yield from ((row, source, "") for row, source in iter_rows(self._spec, on_bad))
        for part in self._parts:
            self._first = None  # each part has a format of its own
            yield from ((row, source, part.name) for row, source in iter_rows(part.path, on_bad))

    def _finish(self, records: Table[Record]) -> Table[Record]:
        """Returns the records with the prompts that they agree on, and completes the notes."""
        if IMPLICIT_TEXT in self._shapes and len(self._shapes) > 1:
            other = next(str(shape) for shape in self._shapes if shape != IMPLICIT_TEXT)
            raise UserError(
                f"data: the rows of some parts have no prompt ({IMPLICIT_TEXT}), those of others have one ({other}). "
                "Where a prompt ends is found by comparing all rows, so give those of all parts a column 'prompt'."
            )
        if IMPLICIT_TEXT in self._shapes:
            agreed, implicit = agree_on_prompts(records)
            records = Table.of(agreed)
            self._notes = replace(self._notes, **vars(implicit))
        if 0 < self._num_system_chats < len(records):  # the rows without a system prompt are chats like the others
            records = Table.of(to_chat(each) if is_question(each) else each for each in records)
        notes, pairing = self._notes, self._pairing
        notes.num_joined, notes.num_waiting_skipped = pairing.num_joined, pairing.num_waiting
        notes.num_close_skipped = pairing.num_close
        notes.ignored_columns = {show_name(name): count for name, count in sorted(notes.ignored_columns.items())}
        return records

    def _read_row(self, row: Row, source: str) -> tuple[DataFormat, list[tuple[Record, Shape]] | None]:
        """Returns a row's format and the records that it completes, with their shapes; None for a tie.

        It counts the row's unread columns in the notes.
        """
        kind = self._kind
        named = rename(row, self._columns)
        parsed = parse_cells(named)
        self._notes.num_parsed += parsed is not named
        row_format = detect_format(parsed, kind) if self._format is DataFormat.auto else self._format
        converted = convert(parsed, row_format, kind)
        if row_format is not DataFormat.trl:  # which is what no other is: there, what is missing is told first
            self._require_format(source, row_format)
        if converted is None:
            return row_format, None
        pairs = self._pairing.make(converted, source, parsed) if kind in PAIRS else [Pair(converted, source, None)]
        if not pairs and RANKED in converted:
            return row_format, None
        built = [(pair, *self._build(pair)) for pair in pairs]
        unread = unread_columns(parsed, row_format, kind, built[0][2].fields if built else ())
        if self._tag in unread:
            unread.remove(self._tag)
        if unread and pairs and pairs[0].scored_by:
            unread = [column for column in unread if column not in pairs[0].scored_by]
            self._notes.num_metadata_scores += METADATA in pairs[0].scored_by
        if isinstance(row, RepeatingRow):
            read_as = {source: name for name, source in self._columns.items()}
            row.require_whole(
                key for key in row if (name := read_as.get(key, key)) not in unread or name in CHECKED[kind]
            )
            self._notes.num_repeated_keys += 1
        for column in unread:
            self._notes.ignored_columns[column] = self._notes.ignored_columns.get(column, 0) + 1
        return row_format, [
            (_with_margin(record, pair.margin), shape) for pair, record, shape in built if self._pairing.admits(pair)
        ]

    def _build(self, pair: Pair) -> tuple[Record, Shape]:
        """Returns the record of a row in TRL's format, and the shape of the row as it stands in the file."""
        row = from_system_column(pair.row) if self._as_chat else pair.row
        record, shape = build_record(row, self._kind, pair.place)
        if row is pair.row:
            return record, shape
        self._num_system_chats += 1
        self._notes.num_as_chat += 1
        return record, replace(shape, content="text")

    def _require_format(self, source: str, format: DataFormat) -> None:
        """Refuses a row of another format than the first, also one that is no record, such as a tie.

        Raises:
            _OtherShapeError: It differs from the first.
        """
        first_source, first_format, _ = self._first or (source, format, None)
        if format is not first_format:
            raise _OtherShapeError(
                f"this row is {format.name}, but {first_source} is {first_format.name}. {ONE_FORMAT}"
            )

    def _alike(self, source: str, record: Record, shape: Shape) -> tuple[Record, Shape]:
        """Returns a record and its shape.

        Raises:
            _OtherShapeError: It differs from the first.
        """
        assert self._first is not None, "its format was looked at"
        first_source, format, first_shape = self._first
        if first_shape is None:
            first_source, first_shape = source, shape
            self._first = (source, format, shape)
        self._shapes.add(first_shape)
        if shape == first_shape:
            return record, shape
        raise _OtherShapeError(
            f"this row is {format.name} with {shape}, but {first_source} is {format.name} with {first_shape}. "
            f"{ONE_FORMAT}"
        )

    def _read_as(self) -> str:
        if self._first is None or self._first[2] is None or self._format is not DataFormat.auto:
            return ""
        return f" (The rows before: {self._first[2]}.)"


def _with_margin(record: Record, margin: float | None) -> Record:
    return replace(record, margin=margin) if isinstance(record, PreferencePair) and margin is not None else record
