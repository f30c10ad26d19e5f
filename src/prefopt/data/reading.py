"""Reads files into records: every row is converted from its format and checked, and what happened is counted."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.data.cells import parse_cells
from prefopt.data.columns import rename
from prefopt.data.files import iter_rows
from prefopt.data.formats import convert, detect_format, unread_columns
from prefopt.data.formats.ratings import RANKED
from prefopt.data.implicit_prompts import ImplicitNotes, agree_on_prompts
from prefopt.data.labels import LABELS, Labels
from prefopt.data.pairing import Pair, Pairing, PairRule
from prefopt.data.records import PreferencePair, Record
from prefopt.data.rows import Shape, build_record
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.table import Table, TableWriter
from prefopt.data.values import RowError, show_name
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)

IMPLICIT_TEXT = Shape(("chosen", "rejected"), "text")
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
    num_ties_skipped: int = 0
    """Rows of two answers of which none is preferred."""
    num_joined: int = 0
    """Pairs that were joined of two rows with a label each."""
    num_waiting_skipped: int = 0
    """Rows with a label for which there is none of the other label."""
    num_close_skipped: int = 0
    """Pairs whose margin is below the one of the settings."""
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

    records: Table[Record]
    notes: ReadNotes
    ties: list[int]
    """Places of the rows that are no record, since neither answer is preferred: from 0, in the order of the files."""
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
) -> ReadResult:
    """Reads and checks every row of `spec`.

    Pairs with identical or empty completions are kept here; `prefopt.data.defects` drops them.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.
        format: The format of the rows; `auto` detects it. All rows must have the same format.
        kind: Whether rows are preference pairs or demonstrations.
        columns: prefopt's name of a column -> the file's, where they differ.
        pairs: Which pairs are made of rows with several answers, and which are left out. None: as the defaults say.
        labels: The labels of other files of the same data set, to which those of `spec` are added; None if none.

    Raises:
        UserError: A row is invalid; it names file, line, field, the value found and the values allowed.
    """
    writer = TableWriter[Record]()
    ties: list[int] = []
    notes = ReadNotes()
    pairing = Pairing(PairRule() if pairs is None else pairs)
    numbers: list[int] = []
    num_rows = 0
    labels = Labels() if labels is None else labels
    first: tuple[str, DataFormat, Shape] | None = None
    unseen = dict(columns or {})
    for row, source in iter_rows(spec):
        unseen = {name: other for name, other in unseen.items() if name not in row and other not in row}
        try:
            found = _read_row(row, source, format, kind, columns or {}, notes, pairing)
        except RowError as error:
            read_as = "" if first is None or format is not DataFormat.auto else f" (The rows before: {first[2]}.)"
            raise UserError(f"{source}: {error}{read_as}") from error
        num_rows += 1
        if found is None:
            ties.append(num_rows - 1)
            continue
        for record, row_format, shape in found:
            first = first or (source, row_format, shape)
            if (row_format, shape) != first[1:]:
                raise UserError(
                    f"{source}: this row is {row_format.name} with {shape}, but {first[0]} is {first[1].name} with "
                    f"{first[2]}. All rows of a data set must have one format: convert or drop the others."
                )
            if shape.fields in LABELLED:
                labels.add(row, source)
            writer.append(record)
            numbers.append(num_rows - 1)
    labels.require_wanted()
    for name, other in unseen.items():
        logger.warning("data.columns: %s: no row has a column '%s' to be read as '%s'", spec, show_name(other), name)
    records = writer.table()
    if first is not None and first[2] == IMPLICIT_TEXT:
        agreed, implicit = agree_on_prompts(records)
        records = Table.of(agreed)
        notes = replace(notes, **vars(implicit))
    notes.num_ties_skipped = len(ties)
    notes.num_rows = num_rows
    notes.num_joined, notes.num_waiting_skipped = pairing.num_joined, pairing.num_waiting
    notes.num_close_skipped = pairing.num_close
    notes.ignored_columns = {show_name(name): count for name, count in sorted(notes.ignored_columns.items())}
    return ReadResult(records, notes, ties, numbers)


def _read_row(
    row: dict[str, object],
    source: str,
    format: DataFormat,
    kind: Kind,
    columns: Mapping[str, str],
    notes: ReadNotes,
    pairing: Pairing,
) -> list[tuple[Record, DataFormat, Shape]] | None:
    """Returns the records that a row completes, with format and shape, and counts its unread columns in `notes`.

    Returns None for a tie.
    """
    named = rename(row, columns)
    parsed = parse_cells(named)
    notes.num_parsed += parsed is not named
    row_format = detect_format(parsed, kind) if format is DataFormat.auto else format
    converted = convert(parsed, row_format, kind)
    if converted is None:
        return None
    pairs = pairing.make(converted, source, parsed) if kind == "preference" else [Pair(converted, source, None)]
    if not pairs and RANKED in converted:
        return None
    built = [(pair, *build_record(pair.row, kind, pair.place)) for pair in pairs]
    unread = unread_columns(parsed, row_format, kind, built[0][2].fields if built else ())
    if isinstance(row, RepeatingRow):
        read_as = {source: name for name, source in columns.items()}
        row.require_whole(key for key in row if (name := read_as.get(key, key)) not in unread or name in CHECKED[kind])
        notes.num_repeated_keys += 1
    for column in unread:
        notes.ignored_columns[column] = notes.ignored_columns.get(column, 0) + 1
    return [
        (_with_margin(record, pair.margin), row_format, shape) for pair, record, shape in built if pairing.admits(pair)
    ]


def _with_margin(record: Record, margin: float | None) -> Record:
    return replace(record, margin=margin) if isinstance(record, PreferencePair) and margin is not None else record
