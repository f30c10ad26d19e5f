"""The formats of rows: one module for each member of `DataFormat` but `auto`, which defines `FORMAT`."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.data.formats import trl
from prefopt.data.formats.format import PASSED_ON, Format, MissingColumnError, Row
from prefopt.data.labels import LABELS, is_missing, says_wanted
from prefopt.data.values import RowError, describe

FORMATS: dict[DataFormat, Format] = {
    name: import_module(f"{__name__}.{name.value}").FORMAT
    for name in (*(name for name in DataFormat if name not in (DataFormat.auto, DataFormat.trl)), DataFormat.trl)
}
"""In the order in which they are tried."""


def detect_format(row: Row, kind: Kind) -> DataFormat:
    """Returns the format of `row` by its keys; TRL's own if no other matches."""
    for name, detect in _detectors(kind):
        if detect(row, kind):
            return name
    raise AssertionError("TRL's own matches any row")


@cache
def _detectors(kind: Kind) -> list[tuple[DataFormat, Callable[[Row, Kind], bool]]]:
    return [(name, form.detect) for name, form in FORMATS.items() if kind in form.looked_for_in]


def convert(row: Row, format: DataFormat, kind: Kind) -> Row | None:
    """Returns `row` converted to TRL's format, itself if it has that already; None for a tie, which is no pair.

    Raises:
        RowError: The row lacks what its format needs.
    """
    reader = FORMATS[format].read.get(kind)
    if reader is None:  # these demonstrations are `messages`, like TRL's
        return trl.read(row)
    try:
        converted = reader(row)
    except MissingColumnError as error:
        raise RowError(f"{error}{other_kind(row, kind)}") from error
    return converted and converted | {key: row[key] for key in PASSED_ON if key in row and key not in converted}


def other_kind(row: Row, kind: Kind) -> str:
    """Returns a hint for an error message if `row` fits another kind than `kind`; else an empty string."""
    return OTHER_KINDS[kind](row)


def _name_pairs(row: Row) -> str:
    alone = (form for name, form in FORMATS.items() if "sft" not in form.read and name is not DataFormat.kto)
    is_pair = ("chosen" in row and "rejected" in row) or any(form.detect(row, "preference") for form in alone)
    return " These are pairs: set algorithm=dpo." if is_pair else ""


def _name_single_answers(row: Row) -> str:
    label = next((name for name in LABELS if not is_missing(row.get(name))), None)
    if label is not None and "rejected" not in row and "text" not in row:
        if says_wanted(row[label]) is None:
            return (
                f" If '{label}' ({describe(row[label])}) says whether the answer is wanted, write true or false "
                "there: then each wanted answer and an unwanted one to the same prompt become a pair. If it means "
                "something else, remove the column."
            )
        return (
            " These are KTO's rows, single answers with a label. Set data.format=kto to join them to pairs, or "
            "train the wanted ones alone with algorithm=sft."
        )
    if any(name in row for name in ("messages", "conversations", "completion", "output")) or (
        "text" in row and "prompt" not in row  # a prompt wants a completion
    ):
        return " These are demonstrations: set algorithm=sft."
    return ""


OTHER_KINDS = {"preference": _name_single_answers, "sft": _name_pairs}


def unread_columns(row: Row, format: DataFormat, kind: Kind, fields: Iterable[str]) -> list[str]:
    """Returns the columns of `row` that have a value but are not read, or only for the margin of a pair.

    Args:
        row: The row as it was read from the file.
        format: The format of the row.
        kind: Kind of the rows.
        fields: The fields of TRL's format from which the record was built.
    """
    read = _read_columns(format, kind, tuple(fields))
    unread = [key for key, value in row.items() if key not in read and value is not None]
    if unread and trl.has_functions(row):
        unread.remove("functions")
    return unread + FORMATS[format].unread(row, kind)


@cache
def _read_columns(format: DataFormat, kind: Kind, fields: tuple[str, ...]) -> frozenset[str]:
    if kind in FORMATS[format].columns:
        return frozenset((*PASSED_ON, *FORMATS[format].columns[kind]))
    return frozenset((*PASSED_ON, "system", *fields))
