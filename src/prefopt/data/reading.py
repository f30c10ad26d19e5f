"""Reads files into records: every row is converted from its format and checked, and what happened is counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.config.mixture import parts_of, paths_of
from prefopt.config.schema import DataConfig
from prefopt.data.arrow import Row
from prefopt.data.as_chat import from_system_column, is_question, to_chat
from prefopt.data.bad_rows import UNREADABLE, BadRows, require_usable
from prefopt.data.cells import parse_cells
from prefopt.data.columns import rename
from prefopt.data.defects import drop_unwanted
from prefopt.data.files import Raw, iter_raw, parse_raw, refuse_repeated
from prefopt.data.formats import convert, detect_format, unread_columns
from prefopt.data.formats.format import PAIRS
from prefopt.data.formats.ratings import RANKED
from prefopt.data.implicit_prompts import agree_on_prompts
from prefopt.data.labels import LABELS, Labels
from prefopt.data.pairing import METADATA, Pair, Pairing, PairRule
from prefopt.data.read_notes import ReadNotes
from prefopt.data.records import PreferencePair, Record
from prefopt.data.rows import Shape, build_record
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.table import Table, TableWriter, pack
from prefopt.data.tags import read_tag
from prefopt.data.values import RowError, show_name, show_names
from prefopt.process.errors import UserError, explained
from prefopt.process.parallel import ITEMS_PER_PROCESS, map_in_processes, num_cores, processes_for

IMPLICIT_TEXT = Shape(("chosen", "rejected"), "text")
OTHER_SHAPE = "other_shape"
"""A further kind of rows that `data.on_bad` decides about."""
ONE_FORMAT = "All rows of a data set must have one format: convert or drop the others."
BLOCK_ROWS = 1000
BLOCK_CHARACTERS = 2**22
"""Most rows that are read as a whole, and number of their characters from which on fewer are."""
LABELLED = (("prompt", "completion"), ("messages",))
"""Fields of the rows that may have a KTO label."""
CHECKED: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "image", "images"),
    "sft": ("prompt", "image", "images", "rejected", *LABELS),
}
"""Columns that may not be part of a record, but whose values decide whether the row is accepted."""


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


class _OtherShapeError(RowError):
    """A row has another format or shape than the first."""


class _Rows(NamedTuple):
    """Rows of a part, each with its place, and the name of the part; it is empty if there are no parts."""

    content: list[tuple[Raw, str]]
    slice: str


@dataclass
class _Block:
    """What has become of some rows. Places of rows are counted from 0, the first of them."""

    bad: BadRows
    unseen: set[str]
    """prefopt's names of the columns of `data.columns` that none of the rows has."""
    notes: ReadNotes = field(default_factory=ReadNotes)
    packed: list[bytes] = field(default_factory=list)
    """The records, as `pack` makes them."""
    numbers: list[int] = field(default_factory=list)
    """For each record the place of its row."""
    ties: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    shapes: set[Shape] = field(default_factory=set)
    has_tag: bool = False
    """Some row has the column of the tag."""
    first_columns: str = ""
    """Columns of the first row, for an error; empty if rows have no tags."""

    def leave_out(self, number: int, source: str, found: str, kind: str = UNREADABLE) -> None:
        self.unreadable.append(number)
        self.bad.add(source, found, kind=kind)


def _to_blocks(rows: Iterator[tuple[Raw, str]], name: str) -> Iterator[_Rows]:
    """Yields the rows in blocks that are read as a whole."""
    block: list[tuple[Raw, str]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row[0]) if isinstance(row[0], str) else 0
        if len(block) == BLOCK_ROWS or size > BLOCK_CHARACTERS:
            yield _Rows(block, name)
            block, size = [], 0
    if block:
        yield _Rows(block, name)


def _finish(records: Table[Record], shapes: set[Shape], notes: ReadNotes) -> Table[Record]:
    """Returns all records with the prompts that they agree on, and adds to the notes how these were found."""
    if IMPLICIT_TEXT in shapes and len(shapes) > 1:
        other = next(str(shape) for shape in shapes if shape != IMPLICIT_TEXT)
        raise UserError(
            f"data: the rows of some parts have no prompt ({IMPLICIT_TEXT}), those of others have one ({other}). "
            "Where a prompt ends is found by comparing all rows, so give those of all parts a column 'prompt'."
        )
    if IMPLICIT_TEXT in shapes:
        records, implicit = agree_on_prompts(records)
        notes.add(implicit)
    if 0 < notes.num_as_chat < len(records):  # the rows without a system prompt are chats like the others
        records = Table.of(to_chat(each) if is_question(each) else each for each in records)
    return records


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
        self._first: tuple[str, DataFormat, Shape | None] | None = None
        """Place, format and shape of the first row; its shape is unknown until a pair is made."""
        self._block: _Block
        """The block that is being read."""

    def read(self, bad: BadRows) -> ReadResult:
        refuse_repeated(
            (path for path in paths_of(self._spec) if isinstance(path, (str, Path)) and str(path)), bad.setting
        )
        writer = TableWriter[Record]()
        result = ReadResult(writer.table(), ReadNotes(), [], [], [])
        unseen = set(self._columns)
        shapes: set[Shape] = set()
        has_tag, columns = self._tag is None, ""
        for block in self._read_blocks(bad.empty()):
            writer.extend_packed(block.packed)
            start = result.notes.num_rows
            for places, more in (
                (result.ties, block.ties),
                (result.unreadable, block.unreadable),
                (result.numbers, block.numbers),
            ):
                places += [start + place for place in more]
            result.notes.add(block.notes)
            bad.merge(block.bad)
            self.labels.merge(block.labels)
            shapes |= block.shapes
            unseen &= block.unseen
            has_tag |= block.has_tag
            columns = columns or block.first_columns
        if columns and not has_tag:
            raise UserError(
                f"data.tag={self._tag}: no row of {bad.setting} has such a column. The first has {columns}: name one "
                "of these, or none: data.tag=null"
            )
        notes = result.notes
        notes.absent_columns = {name: show_name(other) for name, other in self._columns.items() if name in unseen}
        notes.num_ties_skipped = len(result.ties)
        notes.num_unreadable_skipped = bad.num_skipped(UNREADABLE)
        notes.first_unreadable = bad.first_skipped(UNREADABLE)
        notes.num_other_shape_skipped = bad.num_skipped(OTHER_SHAPE)
        notes.num_waiting_skipped = self._pairing.num_waiting
        notes.ignored_columns = {show_name(name): count for name, count in sorted(notes.ignored_columns.items())}
        return replace(result, records=_finish(writer.table(), shapes, notes))

    def _read_blocks(self, bad: BadRows) -> Iterator["_Block"]:
        """Yields the blocks of all rows; those of a large file are read in several processes."""
        whole: list[tuple[object, str]] = [(self._spec, "")]
        for spec, name in [(part.path, part.name) for part in self._parts] or whole:
            self._first = None  # each part has a format of its own
            blocks = _to_blocks(iter_raw(spec), name)
            read = partial(self._read_block, bad)
            for block in blocks:
                yield read(block)
                if self._can_be_split():
                    break
            some = list(islice(blocks, ITEMS_PER_PROCESS * num_cores()))
            yield from map_in_processes(
                read, chain(some, blocks), num_processes=processes_for(len(some)), doing="reading"
            )

    def _can_be_split(self) -> bool:
        """Returns whether the next rows can be read without those before: all is known to which they are compared."""
        if self._first is None:
            return False
        _, format, shape = self._first
        return shape is not None and format is not DataFormat.kto  # whose rows are joined to earlier ones

    def _read_block(self, bad: BadRows, rows: "_Rows") -> "_Block":
        """Reads some rows; what it counts and finds is of these alone."""
        joined, close = self._pairing.num_joined, self._pairing.num_close
        block = self._block = _Block(bad.empty(), set(self._columns))
        with explained(rows.content[0][1]):
            for number, (raw, source) in enumerate(rows.content):
                try:
                    row = parse_raw(raw)
                except RowError as error:
                    block.leave_out(number, source, str(error))
                    continue
                try:
                    tag = "" if self._tag is None else self._find_tag(row, self._tag)
                    block.unseen -= {name for name, other in self._columns.items() if name in row or other in row}
                    row_format, found = self._read_row(row, source)
                    self._require_format(source, row_format)
                    self._first = self._first or (source, row_format, None)
                    made = None if found is None else [self._alike(source, *each) for each in found]
                except _OtherShapeError as error:
                    block.leave_out(number, source, str(error), OTHER_SHAPE)
                    continue
                except RowError as error:
                    block.leave_out(number, source, f"{error}{self._read_as()}")
                    continue
                if made is None:
                    block.ties.append(number)
                for record, shape in made or ():
                    if shape.fields in LABELLED:
                        block.labels.add(row, source)
                    block.packed.append(pack(_with_place(record, rows.slice, tag)))
                    block.numbers.append(number)
        block.notes.num_rows = block.bad.num_rows = len(rows.content)
        block.notes.num_joined = self._pairing.num_joined - joined
        block.notes.num_close_skipped = self._pairing.num_close - close
        return block

    def _find_tag(self, row: Row, column: str) -> str:
        self._block.has_tag |= column in row
        self._block.first_columns = self._block.first_columns or show_names(row)
        return read_tag(row, column)

    def _read_row(self, row: Row, source: str) -> tuple[DataFormat, list[tuple[Record, Shape]] | None]:
        """Returns a row's format and the records that it completes, with their shapes; None for a tie.

        It counts the row's unread columns in the notes.
        """
        kind = self._kind
        named = rename(row, self._columns)
        parsed = parse_cells(named)
        self._block.notes.num_parsed += parsed is not named
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
            self._block.notes.num_metadata_scores += METADATA in pairs[0].scored_by
        if isinstance(row, RepeatingRow):
            read_as = {source: name for name, source in self._columns.items()}
            row.require_whole(
                key for key in row if (name := read_as.get(key, key)) not in unread or name in CHECKED[kind]
            )
            self._block.notes.num_repeated_keys += 1
        for column in unread:
            self._block.notes.ignored_columns[column] = self._block.notes.ignored_columns.get(column, 0) + 1
        return row_format, [
            (_with_margin(record, pair.margin), shape) for pair, record, shape in built if self._pairing.admits(pair)
        ]

    def _build(self, pair: Pair) -> tuple[Record, Shape]:
        """Returns the record of a row in TRL's format, and the shape of the row as it stands in the file."""
        row = from_system_column(pair.row) if self._as_chat else pair.row
        record, shape = build_record(row, self._kind, pair.place)
        if row is pair.row:
            return record, shape
        self._block.notes.num_as_chat += 1
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
        self._block.shapes.add(first_shape)
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


def _with_place(record: Record, name: str, tag: str) -> Record:
    """Returns a record with the name of its part, and its tag."""
    return replace(record, slice=name, tag=tag) if name or tag else record


def _with_margin(record: Record, margin: float | None) -> Record:
    return replace(record, margin=margin) if isinstance(record, PreferencePair) and margin is not None else record
