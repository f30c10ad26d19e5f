"""Strict parsing of JSON, and of Python literals in its place: repeated keys are errors, not silently dropped."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prefopt.data.values import RowError

MAX_LITERAL = 1_000_000
"""Longest Python literal in characters: its parser takes about a hundred bytes of memory for each."""


_BLANKS = re.compile(r"[ \n\r\t]*")


class JSONError(ValueError):
    """An error in a JSON text, with its line, counted from 1.

    `is_syntax` if the text is not JSON at all; `is_at_end` if it is the beginning of a JSON text.
    """

    def __init__(self, message: str, line: int, is_syntax: bool = False, is_at_end: bool = False) -> None:
        super().__init__(message)
        self.line = line
        self.is_syntax = is_syntax
        self.is_at_end = is_at_end


class RepeatingRow(dict[str, Any]):
    """A row with repeated keys at any depth; each key has its last value."""

    def __init__(self, values: dict[str, Any], repeated: dict[str, str]) -> None:
        super().__init__(values)
        self.repeated = repeated
        """Column of the row: the repeated key, which is the column itself or a key within its value."""

    def require_whole(self, columns: Iterable[str]) -> None:
        """Refuses the row if one of `columns` has a repeated key.

        Raises:
            RowError: It names the key.
        """
        for column in columns:
            if column in self.repeated:
                raise RowError(f"{_told_twice(self.repeated[column])}.")


class _RepeatedKey(ValueError):
    pass


class _RepeatingObject(dict[str, Any]):
    """An object with repeated keys, which are listed in `repeated`."""

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


def _repeated(pairs: list[tuple[str, object]]) -> list[str]:
    return [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _told_twice(key: object) -> str:
    return f"the key {json.dumps(key)} stands twice in one object; remove one of them"


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_FORGIVING_DECODER = json.JSONDecoder(object_pairs_hook=_forgiving_object)


def parse(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        JSONError: The text is not JSON, or has a repeated key, a number with thousands of digits, or too much nesting.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _told(error, 1) from error


def parse_row(text: str) -> Any:
    """Returns the value of a JSON text; an object with repeated keys becomes a `RepeatingRow`.

    Raises:
        JSONError: As for `parse`, except for repeated keys.
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
    """Yields the items of a JSON list one by one, as `parse_row` returns them, so that those before an error are read.

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


def parse_values(text: str) -> Iterator[Any]:
    """Yields the values of a text that holds one behind the other, as `parse_row` returns them.

    Raises:
        JSONError: As for `parse_row`.
    """
    position = _skip_blanks(text, 0)
    while position < len(text):
        try:
            value, position = _decode_row(text, position)
        except (ValueError, RecursionError) as error:
            raise _told(error, text.count("\n", 0, position) + 1) from error
        yield value
        position = _skip_blanks(text, position)


def parse_structure(text: str) -> Any:
    """Returns the value of a JSON text or of a Python literal, as `str()` writes lists and dicts.

    Raises:
        JSONError: The text is neither, or has a repeated key.
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
    """Refuses a Python literal with a repeated key in a dict."""
    for node in ast.walk(literal):
        if isinstance(node, ast.Dict):
            for key, count in Counter(ast.literal_eval(key) for key in node.keys if key is not None).items():
                if count > 1:
                    raise JSONError(_told_twice(key), 1)


def _decode_row(text: str, position: int) -> tuple[Any, int]:
    """Returns the value that begins at `position`, and its end position."""
    try:
        return _DECODER.raw_decode(text, position)
    except _RepeatedKey:
        value, position = _FORGIVING_DECODER.raw_decode(text, position)
    return (RepeatingRow(value, _repeated_columns(value)) if isinstance(value, dict) else value), position


def _repeated_columns(row: dict[str, object]) -> dict[str, str]:
    repeated = {}
    for column, value in row.items():
        inside = [value]
        for item in inside:  # the list grows during the loop
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
    """Returns the error as a `JSONError`; `line` is used if the error has no line of its own."""
    if isinstance(error, json.JSONDecodeError):
        is_at_end = not error.doc[error.pos :].strip()
        where = "at the end" if is_at_end else f"at column {error.colno}"
        line = error.doc.rstrip().count("\n") + 1 if is_at_end else error.lineno
        return JSONError(f"invalid JSON: {error.msg} {where}", line, is_syntax=True, is_at_end=is_at_end)
    if isinstance(error, _RepeatedKey):
        return JSONError(str(error), line)
    if isinstance(error, RecursionError):
        return JSONError("lists and objects are nested too deeply to be read", line)
    return JSONError("a whole number has thousands of digits, more than can be read", line)
