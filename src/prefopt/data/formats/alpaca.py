"""Alpaca: `instruction`, `input`, and `output`, or `chosen` and `rejected`."""

from prefopt.data.formats.format import Format, Row, get, system_messages
from prefopt.data.messages import Message
from prefopt.data.values import RowError, check_text, describe

ANSWER = {"preference": "chosen", "sft": "output"}
"""The column beside `instruction`."""
QUESTION = ("instruction", "input", "system", "history")


def detect(row: Row, kind: str) -> bool:
    return "instruction" in row and ANSWER[kind] in row


def read_example(row: Row) -> Row:
    """Returns prompt and completion of messages."""
    return {"prompt": _prompt(row), "completion": [_answer(row, "output")]}


def read_pair(row: Row) -> Row:
    """Returns prompt and completions of messages."""
    return {"prompt": _prompt(row), **{name: [_answer(row, name)] for name in ("chosen", "rejected")}}


def _prompt(row: Row) -> list[Message]:
    instruction = check_text(get(row, "instruction"), "instruction")
    extra = check_text(row.get("input") or "", "input")
    question = f"{instruction}\n{extra}" if extra.strip() else instruction
    return system_messages(row) + _history(row) + [{"role": "user", "content": question}]


def _history(row: Row) -> list[Message]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError(f"'history' must be a list of [question, answer], found {describe(history)}.")
    return [
        {"role": role, "content": check_text(text, "history")}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _answer(row: Row, name: str) -> Message:
    return {"role": "assistant", "content": check_text(get(row, name), name)}


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={"preference": (*QUESTION, "chosen", "rejected"), "sft": (*QUESTION, "output")},
)
