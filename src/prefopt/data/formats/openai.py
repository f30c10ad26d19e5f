"""Rows of OpenAI, Azure, Together and Fireworks: pairs of `input.messages` and two outputs; `messages`.

Their demonstrations are read as TRL's.
"""

from prefopt.data.formats.format import Format, Row, get
from prefopt.data.formats.writing import as_json, get_conversation, get_pair, refuse_columns, refuse_keys
from prefopt.data.messages import UNTRAINED, Message
from prefopt.data.values import RowError, describe

OUTPUTS = ("preferred_output", "non_preferred_output")
IN_INPUT = ("messages", "tools")
"""What is read of `input`."""
KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", UNTRAINED)
"""Keys of a message that can be written."""


def detect(row: Row, kind: str) -> bool:
    return any(name in row for name in OUTPUTS)


def read_pair(row: Row) -> Row:
    """Returns prompt and completions."""
    source = get(row, "input")
    if not isinstance(source, dict) or "messages" not in source:
        raise RowError(f"'input' must be an object with 'messages', found {describe(source)}.")
    chosen, rejected = (get(row, name) for name in OUTPUTS)
    return {"prompt": source["messages"], "chosen": chosen, "rejected": rejected, "tools": source.get("tools")}


def write_pair(row: Row) -> list[Row]:
    """Returns the row with `input` and the two outputs."""
    refuse_columns(row, "chat_template_kwargs")
    prompt, *answers = get_pair(row)
    source = {"messages": _wire(prompt, "prompt"), **_tools(row)}
    return [{"input": source, **{name: _wire(answer, name) for name, answer in zip(OUTPUTS, answers, strict=True)}}]


def write_example(row: Row) -> list[Row]:
    """Returns the row with `messages`; an answer that is not trained has the weight 0."""
    refuse_columns(row, "chat_template_kwargs")
    return [{"messages": _wire(get_conversation(row), "messages"), **_tools(row)}]


def _tools(row: Row) -> Row:
    return {"tools": row["tools"]} if row.get("tools") else {}


def _wire(messages: list[Message], field: str) -> list[Message]:
    """Returns messages as OpenAI's interface has them: arguments of calls are JSON text."""
    return [_wire_message(message, f"{field}[{index}]") for index, message in enumerate(messages)]


def _wire_message(message: Message, field: str) -> Message:
    refuse_keys(message, KEYS, field)
    wired = {key: value for key, value in message.items() if key != UNTRAINED}
    if "tool_calls" in message:
        wired["tool_calls"] = [_wire_call(call) for call in message["tool_calls"]]
    return {**wired, "weight": 0} if UNTRAINED in message else wired


def _wire_call(call: Row) -> Row:
    function = call.get("function", call)
    if "arguments" in function:
        function = {**function, "arguments": as_json(function["arguments"])}
    return {**call, "function": function} if "function" in call else {"type": "function", "function": function}


def _unread(row: Row, kind: str) -> list[str]:
    source = row.get("input")
    return [f"input.{key}" for key in source if key not in IN_INPUT] if isinstance(source, dict) else []


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair},
    columns={"preference": ("input", *OUTPUTS)},
    write={"preference": write_pair, "sft": write_example},
    unread=_unread,
)
