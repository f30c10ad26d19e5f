"""ShareGPT, and LLaMA-Factory's pairs: turns `{from, value}` in `conversations`, and one turn each as answers."""

from prefopt.data.formats.format import Format, Row, get, look_up, system_messages
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
    return "conversations" in row or ("messages" in row and isinstance(row.get("chosen"), dict))


def read_pair(row: Row) -> Row:
    """Returns `conversations`, `chosen` and `rejected` as prompt and completions of messages."""
    completions = {name: [_message(get(row, name), name)] for name in ("chosen", "rejected")}
    return {"prompt": _turns(row), **completions, "tools": wrap_tools(row.get("tools"))}


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
    messages = [_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]
    return system_messages(row) + messages


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


def _unread(row: Row) -> list[str]:
    return ["messages"] if "conversations" in row and row.get("messages") is not None else []


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={
        "preference": ("conversations", "messages", "system", "chosen", "rejected"),
        "sft": ("conversations", "messages", "system"),
    },
    write={"preference": write_pair, "sft": write_example},
    unread=_unread,
)
