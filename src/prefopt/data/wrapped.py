"""JSON files of other shapes than a row a line or a list of rows: objects over several lines, and lists in an object."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from prefopt.data.cells import CELLS
from prefopt.data.strict_json import JSONError, parse, parse_values

MAX_BYTES = 2**28
"""Largest file that is read whole because its first line is no whole object; a larger one is read line by line."""
WRAPPERS = frozenset(("data", "rows", "train", "examples", "instances", "items", "records", "samples", "pairs"))
"""Keys of lists of rows that may have other keys beside them, such as a version."""
SPEAKERS = ("role", "from")
"""Keys of a message: a list of messages is no list of rows."""


def read_wrapped(lines: Iterator[str], num_bytes: int) -> list[Any] | None:
    """Returns the rows of a file whose first line is no row of its own; None if it is, or if the file is a list.

    Args:
        lines: The lines of the file.
        num_bytes: Its size.
    """
    first = next((line for line in lines if not line.isspace()), "")
    if not first.lstrip().startswith("{"):
        return None
    if not _is_whole(first):
        return _parse_all(chain([first], lines)) if num_bytes <= MAX_BYTES else None
    if any(not line.isspace() for line in lines):
        return None
    return find_rows(parse(first))


def _is_whole(line: str) -> bool:
    """Returns whether a line is JSON; damaged JSON that does not end too early counts as such."""
    try:
        parse(line)
    except JSONError as error:
        return not (error.is_syntax and error.is_early_end)
    return True


def _parse_all(lines: Iterator[str]) -> list[Any] | None:
    try:
        values = [*parse_values("".join(lines))]
    except JSONError:
        return None
    return find_rows(values[0]) or values if len(values) == 1 else values


def find_rows(value: object) -> list[Any] | None:
    """Returns the list of rows in an object that is none itself, such as `{"data": [...]}`; None if it has none."""
    if not isinstance(value, dict) or not CELLS.isdisjoint(value):
        return None
    found = [key for key, item in value.items() if _are_rows(item)]
    if len(found) != 1 or (len(value) > 1 and found[0] not in WRAPPERS):
        return None
    rows: list[Any] = value[found[0]]
    return rows


def _are_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not any(key in item for key in SPEAKERS) for item in value)
    )
