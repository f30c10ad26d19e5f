"""The regression suite: each check with right and wrong answers, and each shipped question with its own."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.evaluation import regression
from prefopt.evaluation.regression import (
    CHECKS,
    Question,
    chance_of,
    check,
    check_all,
    digest,
    read_regression,
)
from prefopt.process.errors import UserError

SUITE = read_regression()
ROW = {
    "id": "a",
    "kind": "k",
    "prompt": "p",
    "check": {"type": "exact", "answers": ["x"]},
    "reference": "x",
    "wrong": "y",
}
WEATHER = {"type": "tool_call", "name": "weather", "arguments": {"city": "Oslo", "days": 2}}


def ask(wanted: dict[str, Any]) -> Question:
    return Question("id", "kind", "prompt", wanted, "right", "wrong")


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        ({"type": "exact", "answers": ["blue", "Blue"]}, ["blue", " Blue\n"], ["BLUE", "blue.", "It is blue", ""]),
        (
            {"type": "number", "value": 1250},
            ["1250", "1,250", "So 1000 + 250 = 1250.", "1250.0"],
            ["1251", "1250 or 3", "-1250", "none", "", "9" * 5000],
        ),
        ({"type": "number", "value": -8}, ["-8", "It is -8."], ["8", "- 8"]),
        ({"type": "number", "value": 0.75}, ["0.75", "75 % is 0.75"], ["75", "0,75"]),
        (
            {"type": "choice", "answer": "B", "options": 4},
            ["B", "B)", "(B) Mercury", "B. Mercury", "**B**", "The answer is B.", "Answer: B", "I take B",
             "B, since A is not"],
            ["A", "C) Venus", "b", "A or B", "Mercury", "A: B", "", "The answer is A, not B", "Bees"],
        ),
        ({"type": "choice", "answer": "A", "options": 4}, ["A", "A."], ["E", "B", "An apple"]),
        (
            {"type": "contains", "all": ["tail", "long"], "none": ["dog"]},
            ["Its TAIL is long.", "long-tail"],
            ["tails, long", "tail", "a long tail of a dog", ""],
        ),
        ({"type": "regex", "pattern": r"\S+(?:\s+\S+){2}"}, ["a b c", " a\nb  c "], ["a b", "a b c d", ""]),
        (
            {"type": "json", "value": {"a": [1, True], "b": None}},
            ['{"b": null, "a": [1.0, true]}'],
            ['{"a": [1, 1], "b": null}', '{"a": [true, 1], "b": null}', '```\n{"a": [1, true], "b": null}\n```', ""],
        ),
        (
            {"type": "refuses"},
            ["I can't help with that.", "I\u2019m sorry, but I cannot help.", "Sorry, that is something I won't do.",
             "No. I'm not able to provide this."],
            ["Sure, here is how.", "", "I can do that.", "You cannot miss it."],
        ),
        (
            {"type": "does_not_refuse", "any": ["pid"]},
            ["Find its PID and stop it."],
            ["I can't help with killing. PID", "", "lorem ipsum", "I'm sorry, but PID"],
        ),
        (
            WEATHER,
            ['{"arguments": {"days": 2, "city": "Oslo"}, "name": "weather"}',
             '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'],
            ['{"name": "weather", "arguments": {"city": "Oslo"}}', '{"name": "weather"}', "weather(Oslo, 2)",
             '{"name": "weather", "arguments": {"city": "Oslo", "days": "2"}}', '{"name": "w", "arguments": {}}'],
        ),
    ],
)  # fmt: skip
def test_each_check_passes_right_answers_and_no_wrong_ones(
    wanted: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if not check(ask(wanted), answer)] == []
    assert [answer for answer in wrong if check(ask(wanted), answer)] == []


def test_each_check_is_tested_above_and_used_in_the_suite() -> None:
    assert {question.check["type"] for question in SUITE} == set(CHECKS)


@pytest.mark.parametrize("question", SUITE, ids=lambda question: question.id)
def test_each_shipped_question_passes_its_own_answer_and_neither_a_wrong_one_nor_its_echo(question: Question) -> None:
    assert check(question, question.reference)
    for wrong in (question.wrong, "", question.prompt, "the last one's the last one's the last one", "\0\ud800", "0"):
        assert not check(question, wrong), wrong


def test_an_answer_that_refuses_everything_or_nothing_passes_little() -> None:
    for answer in ("I'm sorry, but I can't help with that.", "Sure, here you are.", "A", "B", "42", "{}", "yes"):
        assert check_all(SUITE, [answer] * len(SUITE)).values["passes"].mean() < 0.1


def test_the_suite_is_balanced() -> None:
    assert 100 <= len(SUITE) <= 120
    assert Counter(question.kind for question in SUITE)["refuse"] == Counter(q.kind for q in SUITE)["answer"]
    letters = Counter(question.check["answer"] for question in SUITE if question.check["type"] == "choice")
    assert min(letters.values()) >= 4
    assert len({question.prompt for question in SUITE}) == len(SUITE)


def test_shares_are_told_by_kind_beside_what_guessing_gets() -> None:
    answers = [question.reference if question.kind == "json" else "" for question in SUITE]
    found = check_all(SUITE, answers)
    assert found.values["passes"].sum() == 14
    assert found.details["by_kind"]["json"] == {"share": 1.0, "n": 14}
    assert found.details["by_kind"]["choice"]["share"] == 0.0
    choices = sum(question.check["type"] == "choice" for question in SUITE)
    assert found.details["chance"] == pytest.approx(choices / 4 / len(SUITE))
    assert chance_of(ask({"type": "choice", "answer": "A", "options": 5})) == 0.2
    with pytest.raises(ValueError, match="shorter"):
        check_all(SUITE, answers[:-1])


def test_the_digest_changes_with_every_part_and_with_nothing_else() -> None:
    assert digest(SUITE) == digest(read_regression())
    changed = [replace(SUITE[0], check={"type": "number", "value": 43}), replace(SUITE[0], prompt="x")]
    assert len({digest([each, *SUITE[1:]]) for each in (*changed, SUITE[0])} | {digest(SUITE[1:])}) == 4


def with_check(**wanted: Any) -> dict[str, Any]:
    return {**ROW, "check": wanted}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 2: invalid JSON"),
        ("[1]", "line 2: a question is a JSON object"),
        ({**ROW, "id": 3}, "'id' must be text"),
        ({**ROW, "extra": 3}, "a question has the keys"),
        ({key: ROW[key] for key in ROW if key != "wrong"}, "a question has the keys"),
        ({**ROW, "check": "exact"}, "'check' must be an object with a type of exact"),
        (with_check(type="magic"), "found 'magic'"),
        (with_check(type="exact"), "needs 'answers'"),
        (with_check(type="exact", answers=[1]), "hold texts"),
        (with_check(type="exact", answers=["x"], case=True), "no 'case'"),
        (with_check(type="choice", answer="A", options=1), "between 2 and 26"),
        (with_check(type="regex", pattern="("), "no regular expression"),
        ({**ROW, "reference": "z"}, "'reference' fails its check"),
        ({**ROW, "wrong": "x"}, "'wrong' passes its check"),
        (ROW, "was there before"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(row: object, told: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text("\n".join([json.dumps(ROW), row if isinstance(row, str) else json.dumps(row)]) + "\n")
    with pytest.raises(UserError) as raised:
        read_regression(str(path))
    assert told in str(raised.value)
    assert f"{path}, line 2" in str(raised.value)


def test_a_file_without_questions_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        read_regression(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="cannot be read"):
        read_regression(str(tmp_path / "gone.jsonl"))


def test_a_pattern_that_never_ends_is_refused_with_its_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "LIMIT_S", 1)
    with pytest.raises(UserError, match=r"question id: it takes more than 1 s"):
        check(ask({"type": "regex", "pattern": "(a+)+"}), "a" * 40 + "!")


def test_hostile_answers_neither_crash_nor_take_long() -> None:
    start = time.perf_counter()
    hostile = ["[" * 200_000, "a " * 200_000, "-" * 200_000, "9," * 200_000, "A B " * 50_000, "\ud800\0", " " * 10**6]
    hostile += ["<tool_call>" * 20_000, '{"a":' * 50_000, "I can't " * 50_000, "a,\n- " * 50_000, "1. one\n" * 30_000]
    for answer in hostile:
        check_all(SUITE, [answer] * len(SUITE))
    assert time.perf_counter() - start < 20
