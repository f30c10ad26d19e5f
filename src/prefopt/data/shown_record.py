"""Reads one training record, to be shown: also one that training leaves out."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from prefopt.config.algorithms import Kind
from prefopt.config.choices import AUTO, PairChoice
from prefopt.config.mixture import parts_of, paths_of
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import Chats
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.defects import drop_defects
from prefopt.data.files import find_numbers, find_place
from prefopt.data.labels import Labels
from prefopt.data.loading import agree_among, read_rows, select_usable
from prefopt.data.mix import cut
from prefopt.data.notes import SplitName, tell_columns
from prefopt.data.pairing import rows_of
from prefopt.data.records import Record
from prefopt.data.table import Table
from prefopt.data.values import RowError
from prefopt.data.wording import agree
from prefopt.process.errors import UserError


class ShownRecord(NamedTuple):
    """One training record, to be shown.

    Attributes:
        record: The record.
        rows: The rows of a run by split, since `data.as_chat=auto` is decided by all of them; none where it keeps text
            in any case, since the prompts are guessed.
        remarks: Which row it is, and what is to be known of the others.
    """

    record: Record
    rows: list[Table[Record]]
    remarks: list[str]


def read_record(config: DataConfig, *, kind: Kind, row: int | str) -> ShownRecord:
    """Returns one training record, also if training would leave it out, such as a pair of two equal answers.

    Of rows that training would refuse, only this one is: the others are counted.

    Args:
        config: The files, and whether text is converted to chats.
        kind: Whether rows are preference pairs or demonstrations.
        row: Its number in `config.train`, from 0, in the order of the files; or its place, `path:line`, or of a table
            `path:row n` and `path:n`.

    Raises:
        UserError: The row is invalid, or there are not so many.
    """
    specs: dict[SplitName, object] = {"train": config.train, "held_out": config.held_out}
    bad = {split: BadRows(f"data.{split}", config) for split, spec in specs.items() if spec is not None}
    labels = Labels()
    read = {split: read_rows(specs[split], each, config, kind, labels) for split, each in bad.items()}
    ties, unreadable = read["train"].ties, read["train"].unreadable
    tables = agree_among(*((result.records, result.notes) for result in read.values()))
    records = tables[0] if "held_out" in read else read["train"].records
    num_rows = read["train"].notes.num_rows
    numbers = read["train"].numbers
    row = row if isinstance(row, int) else _number_of(row, config, numbers)
    if not 0 <= row < num_rows:
        raise UserError(f"--row {row}: data.train has {num_rows} rows, so give a number from 0 to {num_rows - 1}.")
    at = bisect_left(numbers, row)
    num_pairs = bisect_right(numbers, row) - at
    if row in unreadable:
        require_usable(*bad.values())
    if not num_pairs:
        why = "no pair is complete with this row"
        why = "this row is a tie" if row in ties else why
        why = "this row cannot be read (data.on_bad=skip)" if row in unreadable else why
        place = find_place(paths_of(config.train), row)
        raise UserError(f"--row {row}: {why}, {place}, so training leaves it out. Show another.")
    record = records[at]
    remarks = [f"row {row} of data.train, counted from 0 over all its files"]
    if num_pairs > 1:
        remarks.append(f"the row makes {num_pairs} pairs (data.pairs={PairChoice.all.value}); this is the first")
    remarks += [f"data.{split}: {line}" for split, each in read.items() for line in tell_columns(each.notes)]
    for split, result in read.items():
        drop_defects(result.records, bad[split], result.notes)  # adds them to the bad ones
    remarks += [line for each in bad.values() for line in _tell_refused(each)]
    try:
        made = Chats.of(config).make(record)
    except RowError as error:
        raise UserError(f"{record.source}: {error}") from error
    if config.as_chat != AUTO or any(result.notes.num_word_prompts for result in read.values()):
        return ShownRecord(made, [], remarks)
    train, *others = map(select_usable, tables)
    used, _ = cut(train, parts_of(config.train, "data.train"), config.max_rows, config.shuffle_seed)
    return ShownRecord(made, [used, *others], remarks)


def _tell_refused(bad: BadRows) -> list[str]:
    """Says how many rows of a split training would refuse, and shows one of them; nothing if there are none."""
    found = bad.refused()
    num = sum(each.count for each in found)
    if not num:
        return []
    rows = agree("[row|rows]", num)
    return [f"{bad.setting}: {num:,} {rows} cannot be used, and training refuses them, such as {found[0].places[0]}"]


def _number_of(row: str, config: DataConfig, numbers: Sequence[int]) -> int:
    """Returns the number from 0 of a row that was typed as number or place; of two joined rows, that of the pair.

    In a table, `:3` is `:row 3`: the header is no row.

    Raises:
        UserError: It is neither.
    """
    if row.removeprefix("-").isdecimal():
        return int(row)
    places = rows_of(row)
    in_tables = [re.sub(r":(\d+)$", r":row \1", place) for place in places]
    found = find_numbers(paths_of(config.train), {*places, *in_tables})
    if len(found) < len(places):
        first = find_place(paths_of(config.train), 0)
        raise UserError(
            f"--row {row}: no row of data.train. Give a number from 0, or a place as in the audit, such as {first}."
        )
    return next((each for each in found if numbers[bisect_left(numbers, each) :][:1] == [each]), found[0])
