"""KTO's rows, as TRL and LLaMA-Factory have them: one answer each, and a label that says whether it is wanted.

`prefopt.data.pairing` joins two of them to a pair. Demonstrations with such labels are read by their other columns.
"""

from typing import Any

from prefopt.data.formats.format import (
    HISTORY,
    PAIRS,
    PROMPTS,
    Format,
    Row,
    get,
    get_messages,
    get_prompt,
    keep_system,
    unread_questions,
)
from prefopt.data.formats.sharegpt import read_example
from prefopt.data.formats.writing import refuse_marks
from prefopt.data.labels import LABELS, has_label, is_missing, says_wanted
from prefopt.data.messages import Message
from prefopt.data.values import RowError, describe

CHATS = ("messages", "conversations")
ANSWERS = ("completion", "output", "response", *CHATS)
"""Columns that hold an answer, alone or at the end of a conversation."""
WANTED = "wanted"
"""Key of a row that `read_answer` returns: whether its answer is wanted."""


def detect(row: Row, kind: str) -> bool:
    has_answer = any(row.get(name) is not None for name in ANSWERS)
    return has_answer and "rejected" not in row and has_label(row)


def read_answer(row: Row) -> Row:
    """Returns `prompt`, `completion` and whether it is wanted, as a value of `WANTED`."""
    name = next((name for name in LABELS if not is_missing(row.get(name))), LABELS[0])
    wanted = says_wanted(row.get(name))
    if wanted is None:
        raise RowError(f"'{name}' must be true or false, found {describe(row.get(name))}.")
    if row.get("messages") is not None:
        *prompt, answer = get_messages(row)
        question: Any = prompt
        completion: Any = [answer]
    elif row.get("conversations") is not None:
        example = read_example(row)
        *prompt, answer = example["messages"]  # with the system prompt
        return {"prompt": prompt, "completion": [answer], "tools": example["tools"], WANTED: wanted}
    else:
        question = get_prompt(row)
        completion = get(row, next((name for name in ANSWERS if row.get(name) is not None), ANSWERS[0]))
    return {"prompt": question, "completion": completion, **keep_system(row), WANTED: wanted}


def write_pair(row: Row) -> list[Row]:
    """Returns two rows: the chosen answer, which is wanted, and the rejected one, which is not."""
    others = {key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key)}
    return [
        {"prompt": row["prompt"], "completion": _checked(row[name]), "label": name == "chosen", **others}
        for name in ("chosen", "rejected")
    ]


def _checked(answer: str | list[Message]) -> str | list[Message]:
    if isinstance(answer, list):
        refuse_marks(answer)
    return answer


def _unread(row: Row, kind: str) -> list[str]:
    if any(row.get(name) is not None for name in CHATS):
        return [name for name in (*PROMPTS, HISTORY) if row.get(name) is not None]
    return unread_questions(row, kind)


FORMAT = Format(
    detect=detect,
    looked_for_in=PAIRS,
    read={"preference": read_answer},
    columns={"preference": (*PROMPTS, HISTORY, "system", *ANSWERS, *LABELS)},
    write={"preference": write_pair},
    unread=_unread,
)
