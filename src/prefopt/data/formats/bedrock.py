"""Bedrock's and Nova's conversations: content as parts, the system prompt a column, a pair's answers candidates."""

from typing import Any

from prefopt.data.formats.format import Format, Row, get_messages, look_up, system_messages
from prefopt.data.formats.writing import (
    get_answer,
    get_conversation,
    get_pair,
    get_text,
    refuse_columns,
    refuse_marks,
    split_system,
)
from prefopt.data.messages import Message, join_parts
from prefopt.data.values import RowError, describe

SCHEMA = "bedrock-conversation"
WRITTEN = "bedrock-conversation-2024"
"""The `schemaVersion` of demonstrations that are written; others of `SCHEMA` are read too."""
COLUMNS = ("schemaVersion", "system", "messages")
LABELS = {"preferred": "chosen", "non-preferred": "rejected"}
"""Values of a candidate's `preferenceLabel`."""


def detect(row: Row, kind: str) -> bool:
    return str(row.get("schemaVersion", "")).startswith(SCHEMA) or _has_candidates(row.get("messages"))


def read_example(row: Row) -> Row:
    """Returns the conversation as `messages`."""
    return {"messages": _system(row) + get_messages(row)}


def read_pair(row: Row) -> Row:
    """Returns the messages before the candidates as prompt, and the two candidates as completions."""
    messages = get_messages(row)
    if not _has_candidates(messages):
        raise RowError(
            "Bedrock conversations without candidates are demonstrations and hold no pairs. Set algorithm=sft."
        )
    *prompt, last = messages
    answers: Row = {}
    for index, candidate in enumerate(last["candidates"]):
        field = f"messages[{len(prompt)}].candidates[{index}]"
        label = candidate.get("preferenceLabel") if isinstance(candidate, dict) else None
        name = look_up(label, LABELS)
        if name is None:
            raise RowError(f"'{field}.preferenceLabel' must be one of {', '.join(LABELS)}, found {describe(label)}.")
        if name in answers:
            raise RowError(f"two candidates of 'messages[{len(prompt)}]' are {label}. A pair has one of each.")
        answers[name] = [{"role": "assistant", "content": candidate.get("content")}]
    if len(answers) < len(LABELS):
        raise RowError(f"'messages[{len(prompt)}].candidates' must have a preferred and a non-preferred answer.")
    return {"prompt": _system(row) + prompt, **answers}


def _has_candidates(messages: object) -> bool:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return isinstance(messages[-1].get("candidates"), list)


def _system(row: Row) -> list[Any]:
    return system_messages({"system": join_parts(row.get("system") or [], "system")})


def write_pair(row: Row) -> list[Row]:
    """Returns the conversation whose last turn has the two answers as candidates."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    prompt, *answers = get_pair(row)
    candidates = [
        {"content": _parts(get_answer(answer, name), name), "preferenceLabel": label}
        for (label, name), answer in zip(LABELS.items(), answers, strict=True)
    ]
    written = _write(prompt)
    written["messages"].append({"role": "assistant", "candidates": candidates})
    return [written]


def write_example(row: Row) -> list[Row]:
    """Returns the conversation."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    messages = get_conversation(row)
    refuse_marks(messages)
    return [{"schemaVersion": WRITTEN, **_write(messages)}]


def _write(messages: list[Message]) -> Row:
    system, rest = split_system(messages)
    turns = []
    for index, message in enumerate(rest):
        if message["role"] not in ("user", "assistant"):
            raise RowError(
                f"message {index} is of role '{message['role']}', and only user and assistant have a place."
            )
        turns.append({"role": message["role"], "content": _parts(message, f"message {index}")})
    head: Row = {} if system is None else {"system": [{"text": system}]}
    return {**head, "messages": turns}


def _parts(message: Message, field: str) -> list[Row]:
    return [{"text": get_text(message, field)}]


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={"preference": COLUMNS, "sft": COLUMNS},
    write={"preference": write_pair, "sft": write_example},
)
