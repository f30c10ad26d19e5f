"""Message lists that cells hold as text, in JSON or in Python's notation, or as the only item of another list."""

import re
from typing import Any

from prefopt.data.strict_json import JSONError, parse_structure
from prefopt.data.values import RowError

BRACKETS = frozenset("[{")
CELLS = frozenset(
    (
        "prompt",
        "chosen",
        "rejected",
        "completion",
        "messages",
        "conversations",
        "input",
        "preferred_output",
        "non_preferred_output",
        "rejected_messages",
        "contents",
        "completions",
        "conversation_a",
        "conversation_b",
    )
)
"""Columns that may hold messages."""
_BEGINNING = re.compile(r"""\s*(?:\[\s*\{\s*["']|\{\s*(["'])(?:role|content|from|value|messages)\1\s*:)""")
_BEGINS_AS_MESSAGES = re.compile(r"""\s*\[\s*\{\s*(["'])(?:role|content|from|value|messages)\1\s*:""")


def parse_cells(row: dict[str, object]) -> dict[str, Any]:
    """Returns `row` with each list of messages that is text, or the only item of a list; else `row` itself.

    Raises:
        RowError: A text begins like a list of messages, but cannot be parsed.
    """
    parsed = {}
    for name, text in row.items():
        if isinstance(text, str) and name in CELLS and text.lstrip()[:1] in BRACKETS and _BEGINNING.match(text):
            value = _parse(text, name)
            if _is_messages(value):
                parsed[name] = value
        elif isinstance(text, list) and len(text) == 1 and name in CELLS and _is_list_of_messages(text[0]):
            parsed[name] = text[0]
    return {**row, **parsed} if parsed else row


def _parse(text: str, name: str) -> object:
    try:
        return parse_structure(text)
    except JSONError as error:
        if not _BEGINS_AS_MESSAGES.match(text):
            return None
        raise RowError(
            f"'{name}' is text that begins as a list of messages, but is neither JSON nor a Python list: {error}. "
            "Write the table as JSON lines; pandas does it with to_json(path, orient='records', lines=True)."
        ) from error


def _is_messages(value: object) -> bool:
    """Returns whether a value is a list of messages, one turn of ShareGPT, or OpenAI's `input`; other JSON is text."""
    if isinstance(value, dict):
        return {"from", "value"} <= value.keys() or isinstance(value.get("messages"), list)
    return _is_list_of_messages(value)


def _is_list_of_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or {"from", "value"} <= turn.keys()) for turn in value)
    )
