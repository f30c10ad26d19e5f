"""Checks of single values of a row (encodable text, limited nesting), and how error messages show them."""

import json
from collections.abc import Iterable
from types import NoneType
from typing import Any

from prefopt.data.audit.masking import MARGIN, excerpt, mask_json

MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
SHOWN = 60
"""Most characters of a value, or of the name of a field, that an error message shows."""
MAX_SHOWN = 12
"""Most names of fields that an error message lists."""


class RowError(ValueError):
    """An error in one row; the caller that knows the row's place puts it in front of the message."""


def describe(value: object) -> str:
    """Returns the JSON type of `value` and its beginning, for error messages; secrets and personal data are masked."""
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    if value is None:
        return "null"
    try:
        told = value[: SHOWN + MARGIN] if isinstance(value, str) else value
        shown = json.dumps(told, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):
        shown = "..."
    shown = shown.encode(errors="backslashreplace").decode()
    shown = mask_json(shown[: SHOWN + MARGIN])
    shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
    return f"{names.get(type(value), type(value).__name__)} ({shown})"


def show_name(name: str) -> str:
    """Returns the beginning of a field's name, with lone UTF-16 surrogates, which cannot be encoded, escaped."""
    return excerpt(name, SHOWN).encode(errors="backslashreplace").decode()


def show_names(names: Iterable[str]) -> str:
    """Returns names of fields in quotes, for error messages."""
    shown = [f"'{show_name(str(name))}'" for name in names]
    more = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    return ", ".join(shown[:MAX_SHOWN]) + more


def check_text(value: object, field: str) -> str:
    """Returns `value`; raises a `RowError` unless it is text that a tokenizer can encode."""
    if not isinstance(value, str):
        raise RowError(f"'{field}' must be text, found {describe(value)}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"'{field}' holds half of a UTF-16 pair at character {error.start}. Write the whole character."
            ) from error
    return value


def check_nested(value: object, field: str) -> None:
    """Refuses a value with text that cannot be encoded, with a type that JSON lacks, or with too deep nesting."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                check_text(item, field)
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif not isinstance(item, (int, float, NoneType)):
                raise RowError(
                    f"'{field}' holds {describe(item)}, which JSON has not: a template would show Python's form of "
                    "it. Write it as text or as a number."
                )
        if not below:
            return
        level = below
    raise RowError(f"'{field}' has more than {MAX_DEPTH} lists and objects inside each other. Write it flatter.")
