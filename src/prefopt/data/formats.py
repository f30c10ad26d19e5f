"""Detects the format of rows and converts rows of other systems to TRL's formats, by pure functions."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from prefopt.config.choices import DataFormat
from prefopt.data.labels import LABELS, says_wanted
from prefopt.data.messages import Message, join_parts
from prefopt.data.strict_json import JSONError, parse
from prefopt.data.tool_calls import wrap_tools
from prefopt.data.values import RowError, check_text, describe, show_names

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
    DataFormat.swift: ("messages", "rejected_response", "rejected_messages", "system"),
}
"""Columns that the converters read, besides the completions (`chosen`, `rejected`, `output`) and `PASSED_ON`."""


BEDROCK_SCHEMA = "bedrock-conversation"
ANSWER = {"preference": "chosen", "sft": "output"}
"""The column beside Alpaca's `instruction`."""


def detect_format(row: Row, kind: str) -> DataFormat:
    """Returns the format of `row` by its keys; TRL's own if no other matches."""
    if "conversations" in row or ("messages" in row and isinstance(row.get("chosen"), dict)):
        return DataFormat.sharegpt
    if "instruction" in row and ANSWER[kind] in row:
        return DataFormat.alpaca
    if "preferred_output" in row or "non_preferred_output" in row:
        return DataFormat.openai
    if str(row.get("schemaVersion", "")).startswith(BEDROCK_SCHEMA):
        return DataFormat.bedrock
    is_swift = "rejected_response" in row or "rejected_messages" in row
    if is_swift and (DataFormat.swift, kind) in CONVERTERS:
        return DataFormat.swift
    return DataFormat.trl


def convert(row: Row, format: DataFormat, kind: str) -> Row:
    """Returns `row` converted to TRL's format; a row that has it already is returned unchanged.

    Raises:
        RowError: The row lacks what its format needs.
    """
    converter = None if format is DataFormat.trl else CONVERTERS.get((format, kind))
    if converter is not None:
        converted = converter(row)
        return converted | {key: row[key] for key in PASSED_ON if key in row and key not in converted}
    # Demonstrations of OpenAI and Swift are `messages`, like TRL's; OpenAI's older name for tools is `functions`.
    return {**row, "tools": wrap_tools(row["functions"])} if _has_functions(row) else row


def _has_functions(row: Row) -> bool:
    return row.get("functions") is not None and row.get("tools") is None


def other_kind(row: Row, kind: str) -> str:
    """Returns a hint for an error message if `row` fits another kind than `kind`; else an empty string."""
    return OTHER_KINDS[kind](row)


def _name_pairs(row: Row) -> str:
    return " These are pairs: set algorithm=dpo." if "chosen" in row and "rejected" in row else ""


def _name_single_answers(row: Row) -> str:
    if "text" not in row and any(says_wanted(row.get(column)) is not None for column in LABELS):
        return (
            " These are KTO's rows, single answers with a label; DPO needs two answers to each prompt. "
            "Join them to pairs, or train the wanted ones alone with algorithm=sft."
        )
    if any(name in row for name in ("messages", "conversations", "completion", "output", "text")):
        return " These are demonstrations: set algorithm=sft."
    return ""


OTHER_KINDS = {"preference": _name_single_answers, "sft": _name_pairs}


def unread_columns(row: Row, format: DataFormat, kind: str, fields: Iterable[str]) -> list[str]:
    """Returns the columns of `row` that have a value but are not read.

    Args:
        row: The row as it was read from the file.
        format: The format of the row.
        kind: `preference` or `sft`.
        fields: The fields of TRL's format from which the record was built.
    """
    read = _read_columns(format.value, kind, tuple(fields))
    unread = [key for key, value in row.items() if key not in read and value is not None]
    if unread and _has_functions(row):
        unread.remove("functions")
    if unread and format is DataFormat.sharegpt and "conversations" not in row:
        unread.remove("messages")
    if format is DataFormat.openai and isinstance(row.get("input"), dict):
        unread += [f"input.{key}" for key in row["input"] if key not in ("messages", "tools")]
    return unread


@cache
def _read_columns(format: str, kind: str, fields: tuple[str, ...]) -> frozenset[str]:
    if (DataFormat(format), kind) not in CONVERTERS:
        return frozenset((*PASSED_ON, "system", *fields))
    read = {*PASSED_ON, *COLUMNS[DataFormat(format)]}
    own = {"preference": fields, "sft": ("output",) if format == "alpaca" else ()}
    return frozenset(read.union(own[kind]))


def convert_sharegpt_pair(row: Row) -> Row:
    """Returns ShareGPT `conversations`, `chosen` and `rejected` as prompt and completions of messages."""
    completions = {name: [_sharegpt_message(_get(row, name), name)] for name in ("chosen", "rejected")}
    return {"prompt": _sharegpt_turns(row), **completions, "tools": wrap_tools(row.get("tools"))}


def convert_sharegpt_example(row: Row) -> Row:
    """Returns ShareGPT `conversations`, also with function calls, as `messages`."""
    return {"messages": _sharegpt_turns(row), "tools": wrap_tools(row.get("tools"))}


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
    """Returns a Bedrock conversation, whose system prompt is a column with a list of parts, as `messages`."""
    messages = _get(row, "messages")
    if not isinstance(messages, list):
        raise RowError(f"'messages' must be a list of messages {{role, content}}, found {describe(messages)}.")
    system = join_parts(row.get("system") or [], "system")
    return {"messages": _system_messages({"system": system}) + messages}


def convert_bedrock_pair(row: Row) -> Row:
    """Raises a `RowError`: Bedrock conversations are demonstrations, and hold no pairs."""
    raise RowError("Bedrock conversations are demonstrations and hold no pairs. Set algorithm=sft.")


def convert_swift_pair(row: Row) -> Row:
    """Returns Swift's `messages` as chosen, and its `rejected_response` or `rejected_messages` as rejected."""
    messages = _get(row, "messages")
    if not isinstance(messages, list) or not messages:
        raise RowError(f"'messages' must be a list of messages {{role, content}}, found {describe(messages)}.")
    system = {"system": row.get("system")}
    if row.get("rejected_messages") is not None:
        return {"chosen": messages, "rejected": row["rejected_messages"], **system}
    rejected = {"role": "assistant", "content": check_text(_get(row, "rejected_response"), "rejected_response")}
    return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected], **system}


CONVERTERS: dict[tuple[DataFormat, str], Callable[[Row], Row]] = {
    (DataFormat.sharegpt, "preference"): convert_sharegpt_pair,
    (DataFormat.sharegpt, "sft"): convert_sharegpt_example,
    (DataFormat.alpaca, "preference"): convert_alpaca_pair,
    (DataFormat.alpaca, "sft"): convert_alpaca_example,
    (DataFormat.openai, "preference"): convert_openai_pair,
    (DataFormat.swift, "preference"): convert_swift_pair,
    (DataFormat.bedrock, "preference"): convert_bedrock_pair,
    (DataFormat.bedrock, "sft"): convert_bedrock_example,
}


def _get(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise RowError(f"field '{name}' is missing; found {show_names(row)}.")
    return row[name]


def _sharegpt_turns(row: Row) -> list[Message]:
    name = "conversations" if "conversations" in row else "messages"
    turns = _get(row, name)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"'{name}' must be a list of turns {{from, value}}, found {describe(turns)}.")
    messages = [_sharegpt_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]
    return _system_messages(row) + messages


def _sharegpt_message(turn: object, field: str) -> Message:
    if isinstance(turn, dict) and "role" in turn and not turn.keys().isdisjoint(("content", "tool_calls")):
        return turn  # LLaMA-Factory also accepts turns with OpenAI's keys in these columns
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowError(f"'{field}' must be a turn {{from, value}}, found {describe(turn)}.")
    speaker, value = turn["from"], check_text(turn["value"], f"{field}.value")
    others = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {**others, "role": "assistant", "tool_calls": _tool_calls(value, f"{field}.value")}
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        allowed = ", ".join([*SHAREGPT_ROLES, "function_call"])
        raise RowError(f"'{field}.from' must be one of {allowed}, found {describe(speaker)}.")
    return {**others, "role": SHAREGPT_ROLES[speaker], "content": value}


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
