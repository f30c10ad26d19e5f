"""Demonstrations of Claude 3 Haiku on Bedrock: `messages`, and the system prompt as text in `system`.

They are read as TRL's, which may have that column too.
"""

from prefopt.data.formats.format import Format, Row
from prefopt.data.formats.writing import get_conversation, get_text, refuse_columns, refuse_marks, split_system
from prefopt.data.messages import Message
from prefopt.data.values import RowError


def write_example(row: Row) -> list[Row]:
    """Returns the row with `system`, if there is one, and `messages`."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    messages = get_conversation(row)
    refuse_marks(messages)
    system, rest = split_system(messages)
    written = [_write(message, f"message {index}") for index, message in enumerate(rest)]
    return [{**({} if system is None else {"system": system}), "messages": written}]


def _write(message: Message, field: str) -> Message:
    if message["role"] not in ("user", "assistant"):
        raise RowError(f"{field} is of role '{message['role']}', and only user and assistant have a place.")
    return {"role": message["role"], "content": get_text(message, field)}


FORMAT = Format(detect=lambda row, kind: False, read={}, columns={}, write={"sft": write_example})
