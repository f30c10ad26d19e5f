"""Pairs of ms-swift and OpenPipe: `messages` as chosen, and an answer or conversation as rejected.

LLaMA-Factory's `chosen_messages` are read in place of `messages`.

Their demonstrations are TRL's.
"""

from prefopt.data.formats.format import PAIRS, Format, Row, get, get_messages, keep_system
from prefopt.data.formats.writing import (
    get_answer,
    get_conversation,
    get_pair,
    get_text,
    refuse_columns,
    refuse_keys,
    refuse_marks,
)
from prefopt.data.messages import Message
from prefopt.data.values import check_text

CHOSEN = "chosen_messages"
REJECTED = ("rejected_response", "rejected_messages", "rejected_message")


def detect(row: Row, kind: str) -> bool:
    return any(name in row for name in REJECTED)


def read_pair(row: Row) -> Row:
    """Returns prompt and completions; whole conversations as chosen and rejected, which have a common beginning."""
    messages = get_messages(row, _chosen_column(row))
    system = keep_system(row)
    if row.get("rejected_messages") is not None:
        return {"chosen": messages, "rejected": row["rejected_messages"], **system}
    rejected = row.get("rejected_message")
    if rejected is None:
        rejected = {"role": "assistant", "content": check_text(get(row, "rejected_response"), "rejected_response")}
    return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected], **system}


def _chosen_column(row: Row) -> str:
    return CHOSEN if row.get(CHOSEN) is not None else "messages"


def _unread(row: Row, kind: str) -> list[str]:
    return ["messages"] if row.get(CHOSEN) is not None and row.get("messages") is not None else []


def write_pair(row: Row) -> list[Row]:
    """Returns the row with `messages`, the last of which is the chosen answer, and `rejected_response`."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    prompt, chosen, rejected = get_pair(row)
    answer = get_answer(chosen, "chosen")
    messages = _plain([*prompt, answer])
    return [{"messages": messages, "rejected_response": get_text(get_answer(rejected, "rejected"), "rejected")}]


def write_example(row: Row) -> list[Row]:
    """Returns the row with `messages`."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    messages = get_conversation(row)
    refuse_marks(messages)
    return [{"messages": _plain(messages)}]


def _plain(messages: list[Message]) -> list[Message]:
    for index, message in enumerate(messages):
        refuse_keys(message, ("role", "content"), f"message {index}")
    return messages


FORMAT = Format(
    detect=detect,
    looked_for_in=PAIRS,
    read={"preference": read_pair},
    columns={"preference": ("messages", CHOSEN, "system", *REJECTED)},
    write={"preference": write_pair, "sft": write_example},
    unread=_unread,
)
