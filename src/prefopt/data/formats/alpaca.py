"""Alpaca: `instruction`, `input`, and `output`, or `chosen` and `rejected`, or both of these in `output`."""

from prefopt.data.formats.format import (
    ALPACA,
    HISTORY,
    PAIRS,
    Format,
    Row,
    get,
    history_messages,
    system_messages,
    with_input,
)
from prefopt.data.messages import Message
from prefopt.data.values import RowError, check_text

ANSWER = {"preference": "chosen", "sft": "output"}
"""The column beside `instruction`."""
QUESTION = (*ALPACA, "system", HISTORY)


def detect(row: Row, kind: str) -> bool:
    return "instruction" in row and (ANSWER[kind] in row or (kind in PAIRS and is_ranking(row)))


def is_ranking(row: Row) -> bool:
    """Returns whether `output` is a list of texts, the better answer first: LLaMA-Factory's older pairs."""
    answers = row.get("output")
    return isinstance(answers, list) and len(answers) > 1 and all(isinstance(answer, str) for answer in answers)


def read_example(row: Row) -> Row:
    """Returns prompt and completion of messages."""
    if is_ranking(row):
        raise RowError("'output' is a list of answers, the better one first. These are pairs: set algorithm=dpo.")
    return {"prompt": _prompt(row), "completion": [_answer(row, "output")]}


def read_pair(row: Row) -> Row:
    """Returns prompt and completions of messages."""
    if "chosen" not in row and is_ranking(row):
        chosen, *others = row["output"]
        if len(others) > 1:
            raise RowError(
                f"'output' has {len(row['output'])} answers without scores, of which two make a pair. Keep two, the "
                "better one first, or name them 'responses' beside a list of 'scores'."
            )
        row = {**row, "chosen": chosen, "rejected": others[0]}
    return {"prompt": _prompt(row), **{name: [_answer(row, name)] for name in ("chosen", "rejected")}}


def _prompt(row: Row) -> list[Message]:
    return system_messages(row) + history_messages(row) + [{"role": "user", "content": with_input(row)}]


def _answer(row: Row, name: str) -> Message:
    return {"role": "assistant", "content": check_text(get(row, name), name)}


def _unread(row: Row, kind: str) -> list[str]:
    return ["output"] if kind in PAIRS and "chosen" in row and row.get("output") is not None else []


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={"preference": (*QUESTION, "chosen", "rejected", "output"), "sft": (*QUESTION, "output")},
    unread=_unread,
)
