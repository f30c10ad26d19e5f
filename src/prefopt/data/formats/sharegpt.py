"""ShareGPT, and LLaMA-Factory's pairs: turns `{from, value}` in `conversations`, and one turn each as answers."""

from typing import Any

from prefopt.data.formats.format import PAIRS, Format, Row, get, look_up, system_messages
from prefopt.data.formats.writing import (
    as_json,
    functions_of,
    get_answer,
    get_conversation,
    get_pair,
    refuse_columns,
    refuse_keys,
    refuse_marks,
)
from prefopt.data.labels import has_label
from prefopt.data.messages import Message
from prefopt.data.strict_json import JSONError, parse
from prefopt.data.tool_calls import wrap_tools
from prefopt.data.values import RowError, check_text, describe

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
"""Role of a message -> `from` of the turn that is written for it."""


def detect(row: Row, kind: str) -> bool:
    if "conversations" in row:
        return kind not in PAIRS or "chosen" in row or not has_label(row)  # else KTO's
    if "messages" in row and isinstance(row.get("chosen"), dict):
        return True
    return kind in PAIRS and _is_list_of_turns(row.get("chosen"))


def _is_list_of_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "from" in each for each in value)


def read_pair(row: Row) -> Row:
    """Returns `conversations`, `chosen` and `rejected` as prompt and completions of messages.

    Lists of turns as answers may also go with TRL's `prompt`, or be whole conversations with a common beginning.
    """
    completions = {name: _answer(get(row, name), name) for name in ("chosen", "rejected")}
    tools = wrap_tools(row.get("tools"))
    if row.get("conversations") is None and row.get("messages") is None and _is_list_of_turns(row["chosen"]):
        asked = {name: row[name] for name in ("prompt", "system") if row.get(name) is not None}
        if _is_list_of_turns(asked.get("prompt")):
            asked["prompt"] = _messages(asked["prompt"], "prompt")
        return {**asked, **completions, "tools": tools}
    return {"prompt": _turns(row), **completions, "tools": tools}


def read_example(row: Row) -> Row:
    """Returns `conversations`, also with function calls, as `messages`."""
    if isinstance(row.get("chosen"), dict) and isinstance(row.get("rejected"), dict):
        raise RowError("the answers are in 'chosen' and 'rejected'. These are pairs: set algorithm=dpo.")
    return {"messages": _turns(row), "tools": wrap_tools(row.get("tools"))}


def _turns(row: Row) -> list[Message]:
    name = _turns_column(row)
    turns = get(row, name)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"'{name}' must be a list of turns {{from, value}}, found {describe(turns)}.")
    return system_messages(row) + _messages(turns, name)


def _messages(turns: list[Any], field: str) -> list[Message]:
    return [_message(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]


def _answer(value: object, field: str) -> list[Message]:
    return _messages(value, field) if isinstance(value, list) and value else [_message(value, field)]


def _turns_column(row: Row) -> str:
    return "conversations" if "conversations" in row else "messages"


def _message(turn: object, field: str) -> Message:
    if isinstance(turn, dict) and "role" in turn and not turn.keys().isdisjoint(("content", "tool_calls")):
        return turn  # LLaMA-Factory also accepts turns with OpenAI's keys in these columns
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowError(f"'{field}' must be a turn {{from, value}}, found {describe(turn)}.")
    speaker, value = turn["from"], check_text(turn["value"], f"{field}.value")
    others = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {**others, "role": "assistant", "tool_calls": _tool_calls(value, f"{field}.value")}
    role = look_up(speaker, ROLES)
    if role is None:
        allowed = ", ".join([*ROLES, "function_call"])
        raise RowError(f"'{field}.from' must be one of {allowed}, found {describe(speaker)}.")
    return {**others, "role": role, "content": value}


def _tool_calls(text: str, field: str) -> list[Row]:
    try:
        value = parse(text)
    except JSONError as error:
        raise RowError(f"'{field}' of a function_call is not valid JSON: {error}.") from error
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            raise RowError(f"'{field}' must be a call {{name, arguments}} or a list of them, found {describe(call)}.")
    return [{"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in calls]


def write_pair(row: Row) -> list[Row]:
    """Returns the row with `conversations`, and a turn each as `chosen` and `rejected`."""
    refuse_columns(row, "chat_template_kwargs")
    prompt, chosen, rejected = get_pair(row)
    answers = {
        name: _turn(get_answer(answer, name), name) for name, answer in (("chosen", chosen), ("rejected", rejected))
    }
    return [{**_conversations(prompt), **answers, **_tools(row)}]


def write_example(row: Row) -> list[Row]:
    """Returns the row with `conversations`."""
    refuse_columns(row, "chat_template_kwargs")
    messages = get_conversation(row)
    refuse_marks(messages)
    return [{**_conversations(messages), **_tools(row)}]


def _conversations(messages: list[Message]) -> Row:
    return {"conversations": [_turn(message, f"message {index}") for index, message in enumerate(messages)]}


def _turn(message: Message, field: str) -> Row:
    if "tool_calls" in message:
        refuse_keys(message, ("role", "content", "tool_calls"), field)
        if message.get("content"):
            raise RowError(f"{field} says something and calls a function, which is one or the other in a turn here.")
        return {"from": "function_call", "value": _calls(message, field)}
    refuse_keys(message, ("role", "content"), field)
    if message["role"] not in SPEAKERS:
        raise RowError(f"{field} is of role '{message['role']}', for which there is no speaker in the rows to write.")
    return {"from": SPEAKERS[message["role"]], "value": message["content"]}


def _calls(message: Message, field: str) -> str:
    for call in message["tool_calls"]:
        function = call.get("function", call)
        refuse_keys(call if "function" in call else {}, ("type", "function"), f"{field}.tool_calls")
        refuse_keys(function, ("name", "arguments"), f"{field}.tool_calls")
        if "name" not in function or "arguments" not in function:
            raise RowError(f"a call of {field} lacks its name or its arguments, which a turn here must have.")
    calls = functions_of(message)
    return as_json(calls[0] if len(calls) == 1 else calls)


def _tools(row: Row) -> Row:
    """Returns the column with the tools as JSON text, each without what is around its function."""
    tools = row.get("tools")
    if not tools:
        return {}
    for tool in tools:
        refuse_keys(tool if "function" in tool else {}, ("type", "function"), "tools")
    return {"tools": as_json([tool.get("function", tool) for tool in tools])}


def _unread(row: Row, kind: str) -> list[str]:
    others = ("messages", "prompt") if "conversations" in row else ("prompt",) if "messages" in row else ()
    return [name for name in others if row.get(name) is not None]


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={
        "preference": ("conversations", "messages", "prompt", "system", "chosen", "rejected"),
        "sft": ("conversations", "messages", "prompt", "system"),
    },
    write={"preference": write_pair, "sft": write_example},
    unread=_unread,
)
