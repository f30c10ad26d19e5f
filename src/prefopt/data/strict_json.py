"""JSON, and the Python literals that some write in its place: read whole, no key lost, or refused in words."""

import ast
import json
from collections.abc import Iterator
from typing import Any

MAX_LITERAL = 1_000_000
"""Characters of a Python literal, at most: its parser takes some hundred bytes for each."""


class JSONError(ValueError):
    """What is wrong with a JSON text, in which of its lines, counted from 1, and whether it is no JSON at all."""

    def __init__(self, message: str, line: int, is_syntax: bool = False) -> None:
        super().__init__(message)
        self.line = line
        self.is_syntax = is_syntax


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise _RepeatedKey(f"the key {json.dumps(repeated)} stands twice in one object; remove one of them")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(text: str) -> Any:
    """Returns the one value of a JSON text.

    Raises:
        JSONError: It is no JSON, or holds a key twice, a number of thousands of digits or too much nesting.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _told(error, 1) from error


def parse_items(text: str) -> Iterator[Any]:
    """Yields the items of a JSON list one by one, so that an error is met where it stands.

    Raises:
        JSONError: As for `parse`.
    """
    position = _skip_blanks(text, text.index("[") + 1)
    is_open = not text.startswith("]", position)
    while is_open:
        try:
            item, position = _DECODER.raw_decode(text, position)
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
        JSONError: It is neither.
    """
    try:
        return parse(text)
    except JSONError as error:
        if len(text) > MAX_LITERAL or not error.is_syntax:
            raise
        try:
            return json.loads(json.dumps(ast.literal_eval(text.strip())))  # tuples become lists, as in JSON
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise error from None


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _told(error: Exception, line: int) -> JSONError:
    """Returns the error in words; `line` is where it is if it does not know itself."""
    if isinstance(error, json.JSONDecodeError):
        return JSONError(f"invalid JSON: {error.msg} at column {error.colno}", error.lineno, is_syntax=True)
    if isinstance(error, _RepeatedKey):
        return JSONError(str(error), line)
    if isinstance(error, RecursionError):
        return JSONError("lists and objects are nested too deeply to be read", line)
    return JSONError("a whole number has thousands of digits, more than can be read", line)
