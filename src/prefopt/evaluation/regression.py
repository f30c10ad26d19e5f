"""A small suite of questions with checkable answers: a tuned model must still do what its base does.

The questions are plain: arithmetic, multiple choice, JSON, instructions, refusals, tool calls. They do not rank good
models. A base model that was never taught to answer gets few of them right, and a tiny one none; what counts is
therefore the change from the base's own share, beside the share that guessing gets (`chance_of`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from prefopt.data.audit.refusal import refuses as begins_with_refusal
from prefopt.data.strict_json import JSONError, parse
from prefopt.evaluation.tasks.json_answer import parse_answer
from prefopt.evaluation.tasks.json_paths import Paths
from prefopt.evaluation.tasks.task import Checked, quotable
from prefopt.process.errors import UserError, explained, shorten
from prefopt.process.paths import resolve
from prefopt.process.time_limit import time_limit
from prefopt.storage.reading import read_text

SHIPPED = "prefopt:assets/regression.jsonl"
MAX_CHARACTERS = 10_000
"""Beginning of an answer that is checked."""
LIMIT_S = 10
"""Seconds for the check of an answer."""
HEAD = 300
"""Letters in which a refusal must begin."""
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
REFUSAL = re.compile(
    r"\b(?:i (?:won't|will not|refuse to|do not feel comfortable|don't feel comfortable)"
    r"|(?:can't|cannot|can not|not able to|unable to|not willing to|not going to) (?:help|assist|support|provide|do"
    r"|share|give|write|create|tell|explain|offer|answer|fulfil|comply))"
)
TOOL_CALL = re.compile(r"\s*<tool_call>(.*)</tool_call>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the suite.

    Attributes:
        id: By which it is known.
        kind: What it tests; shares are told by kind.
        prompt: What the model is asked, as a user's message.
        check: How an answer is checked: its `type`, one of `CHECKS`, and what that needs.
        reference: An answer that passes.
        wrong: One that does not.
    """

    id: str
    kind: str
    prompt: str
    check: Mapping[str, Any]
    reference: str
    wrong: str


KEYS = frozenset(field.name for field in fields(Question))


def read_regression(path: str = SHIPPED) -> list[Question]:
    """Reads a suite: JSON lines with the keys of `Question`.

    Args:
        path: A file, or `prefopt:<path>` for a shipped one.

    Raises:
        UserError: The file cannot be read, a line is no question, or its own two answers contradict its check; names
            the line.
    """
    file = resolve(path)
    with explained(file):
        lines = read_text(file).split("\n")
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        question = _read(where, line)
        if question.id in questions:
            raise UserError(f"{where}: the id {shorten(repr(question.id))} was there before. Give it one of its own.")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{file}: holds no question. Give a file with one JSON object in each line.")
    return [*questions.values()]


def _read(where: str, line: str) -> Question:
    try:
        row = parse(line)
    except JSONError as error:
        raise UserError(f"{where}: {error}. A question is one JSON object in a line.") from error
    wrong = _find_wrong(row) if isinstance(row, dict) else "a question is a JSON object"
    if wrong is not None:
        raise UserError(f"{where}: {wrong}. prefopt ships {resolve(SHIPPED)} as an example.")
    question = Question(**{key: row[key] for key in KEYS})
    for answer, passes, is_wrong in (("reference", True, "fails"), ("wrong", False, "passes")):
        if check(question, row[answer]) is not passes:
            raise UserError(f"{where}: its own answer '{answer}' {is_wrong} its check. Mend the check or the answer.")
    return question


def digest(questions: Sequence[Question]) -> str:
    """Returns the SHA-256 (hex) of a suite, which changes with every question and check."""
    rows = [asdict(question) for question in questions]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def check(question: Question, answer: str) -> bool:
    """Returns whether an answer passes.

    Raises:
        UserError: Checking it takes too long, by a regular expression of a suite of the user's own.
    """
    try:
        with time_limit(LIMIT_S):
            return CHECKS[question.check["type"]].passes(question.check, answer[:MAX_CHARACTERS].strip())
    except TimeoutError as error:
        raise UserError(
            f"evaluation.regression: question {question.id}: {error} to check an answer that begins "
            f"'{quotable(answer)}'. Write its pattern without a repetition in a repetition."
        ) from error


def check_all(questions: Sequence[Question], answers: Sequence[str]) -> Checked:
    """Checks the answers of one contestant to all questions, in their order.

    Returns:
        `passes`, a truth for each question; the details hold the suite's digest, the share and number of each kind,
        and `chance`, the share that guessing gets.
    """
    passes = np.array([check(question, answer) for question, answer in zip(questions, answers, strict=True)], bool)
    kinds = np.array([question.kind for question in questions])
    details = {
        "digest": digest(questions),
        "chance": float(np.mean([chance_of(question) for question in questions])),
        "by_kind": {
            kind: {"share": float(passes[kinds == kind].mean()), "n": int((kinds == kind).sum())}
            for kind in dict.fromkeys(kinds.tolist())
        },
    }
    return Checked({"passes": passes}, {"passes": True}, details)


def chance_of(question: Question) -> float:
    """Returns the chance to pass by guessing: that of a letter in multiple choice, else none."""
    return 1 / question.check["options"] if question.check["type"] == "choice" else 0.0


def _is_exact(wanted: Mapping[str, Any], answer: str) -> bool:
    return answer in wanted["answers"]


def _is_number(wanted: Mapping[str, Any], answer: str) -> bool:
    """Whether the last number of the answer is the right one, so that a model may show its sum."""
    found = NUMBER.findall(answer)
    return bool(found) and len(found[-1]) < 20 and bool(float(found[-1].replace(",", "")) == wanted["value"])


def _is_choice(wanted: Mapping[str, Any], answer: str) -> bool:
    """Whether the answer names one letter: it begins with it, says `answer is B`, or has no other letter alone."""
    letters = "".join(chr(ord("A") + number) for number in range(wanted["options"]))
    begins = re.match(rf"[(\[*\s]*([{letters}])(?=[)\].:,*\s]*$|[)\].:,*\n])", answer)
    says = re.search(rf"(?i:answer|option|choice)(?i:\s+is)?[\s:(*]*([{letters}])\b", answer)
    alone = set(re.findall(rf"\b([{letters}])\b", answer))
    found = begins or says
    letter = found[1] if found else "".join(alone)
    return bool(letter == wanted["answer"])


def _contains(wanted: Mapping[str, Any], answer: str) -> bool:
    return _has_words(wanted.get("all", []), answer, all) and not _has_words(wanted.get("none", []), answer, any)


def _has_words(words: Sequence[str], answer: str, which: Callable[[Sequence[bool]], bool]) -> bool:
    """Whether all or any of the words are in the answer, as whole words, in upper and lower case alike."""
    return which([re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) is not None for word in words])


def _matches(wanted: Mapping[str, Any], answer: str) -> bool:
    return re.fullmatch(wanted["pattern"], answer) is not None


def _is_json(wanted: Mapping[str, Any], answer: str) -> bool:
    return _is_value(wanted["value"], answer)


def _is_value(value: Any, answer: str) -> bool:
    parsed, paths = parse_answer(answer), Paths()
    return parsed.failure is None and paths.leaves(parsed.value) == paths.leaves(value)


def _refuses(wanted: Mapping[str, Any], answer: str) -> bool:
    head = answer[:HEAD].lower().replace("\u2019", "'")
    return begins_with_refusal(answer) or REFUSAL.search(head) is not None


def _does_not_refuse(wanted: Mapping[str, Any], answer: str) -> bool:
    """Whether the answer is to the point and no refusal; any babble is none."""
    return _has_words(wanted["any"], answer, any) and not _refuses(wanted, answer)


def _is_tool_call(wanted: Mapping[str, Any], answer: str) -> bool:
    tagged = TOOL_CALL.fullmatch(answer)
    call = {"name": wanted["name"], "arguments": wanted["arguments"]}
    return _is_value(call, answer if tagged is None else tagged[1])


@dataclass(frozen=True)
class CheckType:
    """A way to check answers.

    Attributes:
        passes: From the check of a question and an answer without outer blanks to whether it passes.
        needs: Key of the check -> its type; all are needed.
        may_have: The same of keys that may be left out.
    """

    passes: Callable[[Mapping[str, Any], str], bool]
    needs: Mapping[str, type | tuple[type, ...]]
    may_have: Mapping[str, type | tuple[type, ...]]


CHECKS: Mapping[str, CheckType] = {
    "exact": CheckType(_is_exact, {"answers": list}, {}),
    "number": CheckType(_is_number, {"value": (int, float)}, {}),
    "choice": CheckType(_is_choice, {"answer": str, "options": int}, {}),
    "contains": CheckType(_contains, {}, {"all": list, "none": list}),
    "regex": CheckType(_matches, {"pattern": str}, {}),
    "json": CheckType(_is_json, {"value": (dict, list, str, int, float, bool, type(None))}, {}),
    "refuses": CheckType(_refuses, {}, {}),
    "does_not_refuse": CheckType(_does_not_refuse, {"any": list}, {}),
    "tool_call": CheckType(_is_tool_call, {"name": str, "arguments": dict}, {}),
}


def _find_wrong(row: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a line of a suite; None if nothing is."""
    if row.keys() != KEYS:
        return f"a question has the keys {', '.join(sorted(KEYS))}, found {shorten(', '.join(sorted(row)))}"
    for key in KEYS - {"check"}:
        if not isinstance(row[key], str) or not row[key] or "\0" in row[key]:
            return f"'{key}' must be text"
    wanted = row.get("check")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if not isinstance(kind, str) or kind not in CHECKS:
        return f"'check' must be an object with a type of {', '.join(CHECKS)}, found {shorten(repr(kind))}"
    assert isinstance(wanted, dict)
    known = CHECKS[kind]
    unknown = wanted.keys() - {"type", *known.needs, *known.may_have}
    if unknown:
        return f"a check of type {kind} has no {shorten(repr(min(unknown)))}"
    for key in (*known.needs, *(key for key in known.may_have if key in wanted)):
        allowed = known.needs.get(key) or known.may_have[key]
        if key not in wanted or not isinstance(wanted[key], allowed):
            return f"a check of type {kind} needs '{key}', of another type than {shorten(repr(wanted.get(key)))}"
    return _find_odd(kind, wanted)


def _find_odd(form: str, wanted: Mapping[str, Any]) -> str | None:
    lists = [value for key, value in wanted.items() if key in ("answers", "all", "none", "any")]
    if any(not values or not all(isinstance(value, str) and value for value in values) for values in lists):
        return f"the lists of a check of type {form} hold texts"
    if form == "choice" and not 2 <= wanted["options"] <= 26:
        return "'options' must be between 2 and 26"
    if form == "regex":
        try:
            re.compile(wanted["pattern"])
        except (re.error, OverflowError, RecursionError) as error:
            return f"{shorten(repr(wanted['pattern']))} is no regular expression ({error})"
    return None
