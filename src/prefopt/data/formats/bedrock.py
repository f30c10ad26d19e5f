"""Bedrock's and Nova's conversations: content as parts, the system prompt a column, a pair's answers candidates."""

from typing import Any

from prefopt.data.formats.format import Format, Row, get_messages, look_up, system_messages
from prefopt.data.messages import join_parts
from prefopt.data.values import RowError, describe

SCHEMA = "bedrock-conversation"
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


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={"preference": COLUMNS, "sft": COLUMNS},
)
