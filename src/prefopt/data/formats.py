"""Rows of other systems, turned into rows of TRL's formats by pure functions."""

import json
from collections.abc import Iterable
from typing import Any

from prefopt.choices import DataFormat
from prefopt.data.messages import Message, RowError, check_text, check_tools, describe, join_parts

Row = dict[str, Any]

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}

PASSED_ON = ("tools", "chat_template_kwargs")

COLUMNS: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.sharegpt: ("conversations", "system"),
    DataFormat.alpaca: ("instruction", "input", "system", "history"),
    DataFormat.openai: ("input", "preferred_output", "non_preferred_output"),
    DataFormat.bedrock: ("schemaVersion", "system", "messages"),
}
"""What the converters read, beside the completions (`chosen`, `rejected`, `output`) and `PASSED_ON`."""


BEDROCK_SCHEMA = "bedrock-conversation"


def detect_format(row: Row, kind: str) -> DataFormat:
    """Returns the format that the keys of `row` show; TRL's own if none other does."""
    if "conversations" in row:
        return DataFormat.sharegpt
    if "instruction" in row and ("output" in row if kind == "sft" else "chosen" in row):
        return DataFormat.alpaca
    if "preferred_output" in row or "non_preferred_output" in row:
        return DataFormat.openai
    if str(row.get("schemaVersion", "")).startswith(BEDROCK_SCHEMA):
        return DataFormat.bedrock
    return DataFormat.trl


def convert(row: Row, format: DataFormat, kind: str) -> Row:
    """Returns `row` as TRL writes it; a row of TRL's format is returned as it is.

    Raises:
        RowError: The row lacks what its format needs.
    """
    if format is DataFormat.trl:
        return row
    if format is DataFormat.openai and kind == "sft":
        return row  # OpenAI's demonstrations are `messages`, as TRL's
    converters = {
        (DataFormat.sharegpt, "preference"): convert_sharegpt_pair,
        (DataFormat.sharegpt, "sft"): convert_sharegpt_example,
        (DataFormat.alpaca, "preference"): convert_alpaca_pair,
        (DataFormat.alpaca, "sft"): convert_alpaca_example,
        (DataFormat.openai, "preference"): convert_openai_pair,
        (DataFormat.bedrock, "preference"): convert_bedrock_pair,
        (DataFormat.bedrock, "sft"): convert_bedrock_example,
    }
    converted = converters[format, kind](row)
    return converted | {key: row[key] for key in PASSED_ON if key in row and key not in converted}


def unread_columns(row: Row, format: DataFormat, kind: str, fields: Iterable[str]) -> list[str]:
    """Returns the columns of `row` that hold a value which no record will carry.

    Args:
        row: The row as it was read.
        format: Its format.
        kind: `preference` or `sft`.
        fields: The fields of TRL's format that its record was made from.
    """
    read = {*PASSED_ON, *COLUMNS.get(format, ())}
    if format is DataFormat.alpaca and kind == "sft":
        read.add("output")
    if format is DataFormat.trl or kind == "preference":
        read.update(fields)
    if format is DataFormat.openai and kind == "sft":
        read = {*PASSED_ON, *fields}
    unread = [key for key, value in row.items() if key not in read and value is not None]
    if format is DataFormat.openai and isinstance(row.get("input"), dict):
        unread += [f"input.{key}" for key in row["input"] if key not in ("messages", "tools")]
    return unread


def convert_sharegpt_pair(row: Row) -> Row:
    """Returns ShareGPT `conversations`, `chosen` and `rejected` as prompt and completions of messages."""
    completions = {name: [_sharegpt_message(_get(row, name), name)] for name in ("chosen", "rejected")}
    return {"prompt": _sharegpt_turns(row), **completions, "tools": _wrap_tools(row.get("tools"))}


def convert_sharegpt_example(row: Row) -> Row:
    """Returns ShareGPT `conversations`, also with function calls, as `messages`."""
    return {"messages": _sharegpt_turns(row), "tools": _wrap_tools(row.get("tools"))}


def convert_alpaca_example(row: Row) -> Row:
    """Returns Alpaca `instruction`, `input` and `output` as prompt and completion of messages."""
    return {"prompt": _alpaca_prompt(row), "completion": [_alpaca_answer(row, "output")]}


def convert_alpaca_pair(row: Row) -> Row:
    """Returns Alpaca `instruction`, `input`, `chosen` and `rejected` as prompt and completions of messages."""
    completions = {name: [_alpaca_answer(row, name)] for name in ("chosen", "rejected")}
    return {"prompt": _alpaca_prompt(row), **completions}


def convert_openai_pair(row: Row) -> Row:
    """Returns an OpenAI or Azure preference row (`input.messages` and two outputs) as prompt and completions."""
    source = _get(row, "input")
    if not isinstance(source, dict) or "messages" not in source:
        raise RowError(f"'input' must be an object with 'messages', found {describe(source)}.")
    return {
        "prompt": source["messages"],
        "chosen": _get(row, "preferred_output"),
        "rejected": _get(row, "non_preferred_output"),
        "tools": source.get("tools"),
    }


def convert_bedrock_example(row: Row) -> Row:
    """Returns a Bedrock conversation, whose system prompt is a column of parts, as `messages`."""
    messages = _get(row, "messages")
    if not isinstance(messages, list):
        raise RowError(f"'messages' must be a list of messages {{role, content}}, found {describe(messages)}.")
    system = join_parts(row.get("system") or [], "system")
    return {"messages": _system_messages({"system": system}) + messages}


def convert_bedrock_pair(row: Row) -> Row:
    """Refuses a Bedrock conversation where pairs are wanted."""
    raise RowError("Bedrock conversations are demonstrations and hold no pairs. Set algorithm=sft.")


def _get(row: Row, name: str) -> Any:
    if row.get(name) is None:
        found = ", ".join(f"'{key}'" for key in row)
        raise RowError(f"field '{name}' is missing; found {found}.")
    return row[name]


def _sharegpt_turns(row: Row) -> list[Message]:
    turns = _get(row, "conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError(f"'conversations' must be a list of turns {{from, value}}, found {describe(turns)}.")
    messages = [_sharegpt_message(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    return _system_messages(row) + messages


def _sharegpt_message(turn: Any, field: str) -> Message:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowError(f"'{field}' must be a turn {{from, value}}, found {describe(turn)}.")
    speaker, value = turn["from"], check_text(turn["value"], f"{field}.value")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _tool_calls(value, f"{field}.value")}
    if speaker not in SHAREGPT_ROLES:
        allowed = ", ".join([*SHAREGPT_ROLES, "function_call"])
        raise RowError(f"'{field}.from' must be one of {allowed}, found {describe(speaker)}.")
    return {"role": SHAREGPT_ROLES[speaker], "content": value}


def _tool_calls(text: str, field: str) -> list[Row]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"'{field}' of a function_call is not valid JSON: {error}.") from error
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            raise RowError(f"'{field}' must be a call {{name, arguments}} or a list of them, found {describe(call)}.")
    return [{"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in calls]


def _wrap_tools(value: Any) -> list[Any] | None:
    """Returns tools as transformers' templates expect them: `{type: function, function: {...}}`."""
    tools = check_tools(value)
    if tools is None:
        return None
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError(f"'tools' must be a list of objects, found {describe(tool)} in it.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _alpaca_prompt(row: Row) -> list[Message]:
    instruction = check_text(_get(row, "instruction"), "instruction")
    extra = check_text(row.get("input") or "", "input")
    question = f"{instruction}\n{extra}" if extra.strip() else instruction
    return _system_messages(row) + _alpaca_history(row) + [{"role": "user", "content": question}]


def _alpaca_history(row: Row) -> list[Message]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError(f"'history' must be a list of [question, answer], found {describe(history)}.")
    return [
        {"role": role, "content": check_text(text, "history")}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _alpaca_answer(row: Row, name: str) -> Message:
    return {"role": "assistant", "content": check_text(_get(row, name), name)}


def _system_messages(row: Row) -> list[Message]:
    system = row.get("system")
    return [{"role": "system", "content": check_text(system, "system")}] if system else []
