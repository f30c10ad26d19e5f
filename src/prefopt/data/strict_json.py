"""JSON, and the Python literals that some write in its place: read whole, no key lost, or refused in words."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prefopt.data.values import RowError

MAX_LITERAL = 1_000_000
"""Characters of a Python literal, at most: its parser takes some hundred bytes for each."""


_BLANKS = re.compile(r"[ \n\r\t]*")


class JSONError(ValueError):
    """What is wrong with a JSON text, in which of its lines, counted from 1, and whether it is no JSON at all."""

    def __init__(self, message: str, line: int, is_syntax: bool = False) -> None:
        super().__init__(message)
        self.line = line
        self.is_syntax = is_syntax


class RepeatingRow(dict[str, Any]):
    """An object in which keys stand twice, at any depth; each has its last value."""

    def __init__(self, values: dict[str, Any], repeated: dict[str, str]) -> None:
        super().__init__(values)
        self.repeated = repeated
        """Key of the object itself: the key that stands twice, which is itself or lies in its value."""

    def require_whole(self, columns: Iterable[str]) -> None:
        """Refuses the row if a key stands twice in one of the columns, which are read.

        Raises:
            RowError: Naming the key.
        """
        for column in columns:
            if column in self.repeated:
                raise RowError(f"{_told_twice(self.repeated[column])}.")


class _RepeatedKey(ValueError):
    pass


class _RepeatingObject(dict[str, Any]):
    """An object within a row; `repeated` are the keys that stand twice in it."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RepeatedKey(_told_twice(_repeated(pairs)[0]))
    return made


def _forgiving_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    repeating = _RepeatingObject(made)
    repeating.repeated = _repeated(pairs)
    return repeating


def _repeated(pairs: list[tuple[str, Any]]) -> list[str]:
    return [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _told_twice(key: Any) -> str:
    return f"the key {json.dumps(key)} stands twice in one object; remove one of them"


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_FORGIVING_DECODER = json.JSONDecoder(object_pairs_hook=_forgiving_object)


def parse(text: str) -> Any:
    """Returns the one value of a JSON text.

    Raises:
        JSONError: It is no JSON, or holds a key twice, a number of thousands of digits or too much nesting.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _told(error, 1) from error


def parse_row(text: str) -> Any:
    """Returns the one value of a JSON text; of an object in which keys stand twice, a `RepeatingRow`.

    Raises:
        JSONError: As for `parse`, but for keys that stand twice.
    """
    try:
        value, end = _decode_row(text, _skip_blanks(text, 0))
        end = _skip_blanks(text, end)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value
    except (ValueError, RecursionError) as error:
        raise _told(error, 1) from error


def parse_rows(text: str) -> Iterator[Any]:
    """Yields the items of a JSON list one by one, as `parse_row` does, so that an error is met where it stands.

    Raises:
        JSONError: As for `parse_row`.
    """
    position = _skip_blanks(text, text.index("[") + 1)
    is_open = not text.startswith("]", position)
    while is_open:
        try:
            item, position = _decode_row(text, position)
        except (ValueError, RecursionError) as error:
            raise _told(error, text.count("\n", 0, position) + 1) from error
        yield item
        position = _skip_blanks(text, position)
        is_open = text.startswith(",", position)
        if is_open:
            position = _skip_blanks(text, position + 1)
    if not text.startswith("]", position):
        raise _told(json.JSONDecodeError("Expecting ',' delimiter", text, position), 1)
    position = _skip_blanks(text, position + 1)
    if position < len(text):
        raise _told(json.JSONDecodeError("Extra data", text, position), 1)


def parse_structure(text: str) -> Any:
    """Returns the value of a text in JSON or, as `str()` writes lists and objects, in Python.

    Raises:
        JSONError: It is neither, or holds a key twice.
    """
    try:
        return parse(text)
    except JSONError as error:
        if len(text) > MAX_LITERAL or not error.is_syntax:
            raise
        try:
            literal = ast.parse(text.strip(), mode="eval")
            written = json.dumps(ast.literal_eval(literal))  # tuples become lists, as in JSON
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise error from None
        _refuse_repeated(literal)
        return parse(written)


def _refuse_repeated(literal: ast.AST) -> None:
    """Refuses a Python literal with an object in which a key stands twice."""
    for node in ast.walk(literal):
        if isinstance(node, ast.Dict):
            for key, count in Counter(ast.literal_eval(key) for key in node.keys if key is not None).items():
                if count > 1:
                    raise JSONError(_told_twice(key), 1)


def _decode_row(text: str, position: int) -> tuple[Any, int]:
    """Returns the value that begins at a position, and where it ends."""
    try:
        return _DECODER.raw_decode(text, position)
    except _RepeatedKey:
        value, position = _FORGIVING_DECODER.raw_decode(text, position)
    return (RepeatingRow(value, _repeated_columns(value)) if isinstance(value, dict) else value), position


def _repeated_columns(row: dict[str, Any]) -> dict[str, str]:
    repeated = {}
    for column, value in row.items():
        inside = [value]
        for item in inside:  # grows on the way
            if isinstance(item, _RepeatingObject):
                repeated[column] = item.repeated[0]
                break
            inside += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    own = row.repeated if isinstance(row, _RepeatingObject) else []
    return {**repeated, **{key: key for key in own}}


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    assert match is not None, "no blanks match too"
    return match.end()


def _told(error: Exception, line: int) -> JSONError:
    """Returns the error in words; `line` is where it is if it does not know itself."""
    if isinstance(error, json.JSONDecodeError):
        return JSONError(f"invalid JSON: {error.msg} at column {error.colno}", error.lineno, is_syntax=True)
    if isinstance(error, _RepeatedKey):
        return JSONError(str(error), line)
    if isinstance(error, RecursionError):
        return JSONError("lists and objects are nested too deeply to be read", line)
    return JSONError("a whole number has thousands of digits, more than can be read", line)
