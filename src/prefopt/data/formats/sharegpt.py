"""ShareGPT, and LLaMA-Factory's pairs: turns `{from, value}` in `conversations`, and one turn each as answers."""

from prefopt.data.formats.format import Format, Row, get, look_up, system_messages
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


def _unread(row: Row) -> list[str]:
    return ["messages"] if "conversations" in row and row.get("messages") is not None else []


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={
        "preference": ("conversations", "messages", "system", "chosen", "rejected"),
        "sft": ("conversations", "messages", "system"),
    },
    unread=_unread,
)
