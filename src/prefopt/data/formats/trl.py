"""TRL's own rows: `prompt`, `chosen`, `rejected`; `messages`; `prompt` and `completion`; `text`.

Demonstrations of OpenAI and ms-swift are `messages` too; OpenAI's older name for tools is `functions`.
"""

from prefopt.data.formats.format import Format, Row
from prefopt.data.formats.writing import refuse_marks
from prefopt.data.tool_calls import wrap_tools


def read(row: Row) -> Row:
    """Returns the row itself, with tools under their newer name."""
    return {**row, "tools": wrap_tools(row["functions"])} if has_functions(row) else row


def has_functions(row: Row) -> bool:
    """Returns whether the tools of a row stand under their older name."""
    return row.get("functions") is not None and row.get("tools") is None


def write(row: Row) -> list[Row]:
    """Returns the row itself; TRL trains every answer, so it may have no marks."""
    for name in ("chosen", "rejected", "completion", "messages"):
        if isinstance(row.get(name), list):
            refuse_marks(row[name])
    return [row]


FORMAT = Format(
    detect=lambda row, kind: True,
    read={"preference": read, "sft": read},
    columns={},
    write={"preference": write, "sft": write},
    margin="margin",
)
"""Tried last: what is of no other format is of this one. Which columns count depends on the row."""
