"""Pairs of OpenAI, Azure, Together and Fireworks: `input.messages` and two outputs."""

from prefopt.data.formats.format import Format, Row, get
from prefopt.data.values import RowError, describe

OUTPUTS = ("preferred_output", "non_preferred_output")
IN_INPUT = ("messages", "tools")
"""What is read of `input`."""


def detect(row: Row, kind: str) -> bool:
    return any(name in row for name in OUTPUTS)


def read_pair(row: Row) -> Row:
    """Returns prompt and completions."""
    source = get(row, "input")
    if not isinstance(source, dict) or "messages" not in source:
        raise RowError(f"'input' must be an object with 'messages', found {describe(source)}.")
    chosen, rejected = (get(row, name) for name in OUTPUTS)
    return {"prompt": source["messages"], "chosen": chosen, "rejected": rejected, "tools": source.get("tools")}


def _unread(row: Row) -> list[str]:
    source = row.get("input")
    return [f"input.{key}" for key in source if key not in IN_INPUT] if isinstance(source, dict) else []


FORMAT = Format(
    detect=detect, read={"preference": read_pair}, columns={"preference": ("input", *OUTPUTS)}, unread=_unread
)
