"""Several answers with scores or ranks, of which `prefopt.data.pairing` makes pairs."""

import math
from decimal import Decimal
from typing import Any

from prefopt.data.formats.format import HISTORY, PAIRS, PROMPTS, Format, Row, get_prompt, keep_system, unread_questions
from prefopt.data.values import RowError, describe

ANSWERS = ("completions", "responses", "answers", "outputs", "candidates")
TEXTS = ("response", "answer", "completion", "output", "text", "content")
"""Key of an answer's text, where answers are objects."""
SCORES = ("overall_score", "score", "rating", "reward", "quality")
RANKS = ("rank", "ranking")
"""Like `SCORES`, but 1 is the best."""
RANKED = "ranked"
"""Key of a row that `read_answers` returns: a list of (answer, how good it is)."""
PLURAL = "s"
"""Columns of numbers beside a column of texts are named in the plural: `scores`, `ranks`."""


def detect(row: Row, kind: str) -> bool:
    answers = _answers(row)
    if answers is None or (row.get("chosen") is not None and row.get("rejected") is not None):
        return False  # the row says itself which answer is better, whatever the scores beside it
    if all(isinstance(each, dict) for each in answers):
        return any(name in answers[0] for name in TEXTS) and _measure(answers[0]) is not None
    return all(isinstance(each, str) for each in answers) and _measure(row, PLURAL) is not None


def read_answers(row: Row) -> Row:
    """Returns the prompt, and the answers with how good they are, as a value of `RANKED`."""
    answers = _answers(row)
    assert answers is not None, "detected by them"
    rated = _rated_objects(answers) if isinstance(answers[0], dict) else _rated_texts(row, answers)
    return {"prompt": get_prompt(row), **keep_system(row), RANKED: rated}


def _answers(row: Row) -> list[Any] | None:
    return next((row[name] for name in ANSWERS if isinstance(row.get(name), list) and len(row[name]) > 1), None)


def _measure(row: Row, ending: str = "") -> tuple[str, int] | None:
    """Returns the name of a row's score or rank, and 1 if a higher one is better, else -1."""
    signs = {**dict.fromkeys(SCORES, 1), **dict.fromkeys(RANKS, -1)}
    return next(((f"{name}{ending}", sign) for name, sign in signs.items() if f"{name}{ending}" in row), None)


def _rated_objects(answers: list[Any]) -> list[tuple[Any, float]]:
    name, sign = _measure(answers[0]) or (SCORES[0], 1)
    rated = []
    for index, answer in enumerate(answers):
        text = next((answer[name] for name in TEXTS if name in answer), None) if isinstance(answer, dict) else None
        if text is None:
            raise RowError(f"answer {index} must be {{{TEXTS[0]}, {name}}}, found {describe(answer)}.")
        rated.append((text, sign * _number(answer.get(name), f"{name} of answer {index}")))
    return rated


def _rated_texts(row: Row, answers: list[Any]) -> list[tuple[Any, float]]:
    name, sign = _measure(row, PLURAL) or (SCORES[0] + PLURAL, 1)
    numbers = row.get(name)
    if not isinstance(numbers, list) or len(numbers) != len(answers):
        raise RowError(
            f"'{name}' must be a list of {len(answers)} numbers, one per answer, found {describe(numbers)}."
        )
    return [
        (text, sign * _number(number, f"{name}[{index}]"))
        for index, (text, number) in enumerate(zip(answers, numbers, strict=True))
    ]


def _number(value: object, field: str) -> float:
    number = float(value) if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else math.nan
    if math.isnan(number):
        raise RowError(f"'{field}' must be a number, found {describe(value)}.")
    return number


FORMAT = Format(
    detect=detect,
    looked_for_in=PAIRS,
    read={"preference": read_answers},
    columns={
        "preference": ("system", HISTORY, *PROMPTS, *ANSWERS, *(f"{name}{PLURAL}" for name in (*SCORES, *RANKS))),
    },
    unread=unread_questions,
)
