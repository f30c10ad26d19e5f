"""JSON files of other shapes than a row a line or a list of rows: objects over several lines, lists in an object."""

from collections.abc import Iterator
from typing import Any

from prefopt.config.schema import COLUMNS
from prefopt.data.cells import CELLS
from prefopt.data.formats.format import PASSED_ON
from prefopt.data.strict_json import JSONError, parse, parse_values

MAX_BYTES = 2**28
"""Largest file that is read whole because its first line is no whole object; a larger one is read line by line."""
WRAPPERS = frozenset(("data", "rows", "train", "examples", "instances", "items", "records", "samples", "pairs"))
"""Keys of lists of rows that may have other keys beside them, such as a version."""
READ = CELLS.union(COLUMNS, PASSED_ON)
"""Keys of rows: an object with one of them is a row itself."""
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
    if _is_beginning(first):
        values = _parse_all("".join([first, *lines])) if num_bytes <= MAX_BYTES else None
        found = find_rows(values[0]) if values is not None and len(values) == 1 else None
        return values if found is None else found
    if any(not line.isspace() for line in lines):
        return None
    values = _parse_all(first)
    return None if values is None else find_rows(values[0])


def _is_beginning(line: str) -> bool:
    """Returns whether a line is the beginning of a JSON text, and no whole one."""
    try:
        parse(line)
    except JSONError as error:
        return error.is_at_end
    return False


def _parse_all(text: str) -> list[Any] | None:
    try:
        return [*parse_values(text)]
    except JSONError:
        return None


def find_rows(value: object) -> list[Any] | None:
    """Returns the list of rows in an object that is none itself, such as `{"data": [...]}`; None if it has none."""
    if not isinstance(value, dict) or not READ.isdisjoint(value):
        return None
    found = [key for key, item in value.items() if _are_rows(item) or (item == [] and key in WRAPPERS)]
    if len(found) != 1 or (len(value) > 1 and found[0] not in WRAPPERS):
        return None
    rows: list[Any] = value[found[0]]
    return rows


def flatten(item: object) -> list[Any]:
    """Returns the rows that an item of a list of rows stands for: itself, a conversation, or the rows of a list."""
    if not isinstance(item, list) or not item or not all(isinstance(each, dict) for each in item):
        return [item]
    if _are_rows(item):
        return item
    return [{"conversations" if "from" in item[0] else "messages": item}]


def _are_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not any(key in item for key in SPEAKERS) for item in value)
    )
