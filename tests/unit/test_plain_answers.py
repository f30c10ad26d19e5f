"""Empty answers, and the same answer to everything, are found without a judge, whatever a judge says of them."""

from collections.abc import Sequence

import pytest

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.decision import Finding
from prefopt.evaluation.findings import assess
from prefopt.evaluation.plain_answers import describe_answers, judge_plainly
from prefopt.evaluation.report import Report
from tests.unit.test_win_findings import judged, win


def ask(num: int, chosen: str | None = None) -> list[Asked]:
    return [Asked(f"a:{row}", f"prompt {row}", f"answer {row}" if chosen is None else chosen) for row in range(num)]


def find(asked: Sequence[Asked], **answers: Sequence[str]) -> list[Finding]:
    return judge_plainly(describe_answers(asked, answers))


def various(num: int) -> list[str]:
    return [f"reply {row}" for row in range(num)]


def test_empty_and_equal_answers_are_counted_each_prompt_once() -> None:
    asked = [Asked("a:1", "p", "x"), Asked("a:2", "q", "x"), Asked("a:3", "p", "y"), Asked("a:4", "r", None)]
    found = describe_answers(asked, {"tuned": ["same", " same\n", "same", ""], "silent": []})
    assert found == {"tuned": {"n": 4, "empty": 1, "prompts": 3, "same": 2, "same_in_data": 2}}


@pytest.mark.parametrize(
    ("num_empty", "level"), [(0, None), (2, None), (3, "warning"), (20, "bad"), (40, "bad")]
)  # fmt: skip
def test_a_tuned_model_that_answers_nothing_is_ruined(num_empty: int, level: str | None) -> None:
    findings = find(ask(40), tuned=[" "] * num_empty + various(40)[num_empty:], base=various(40))
    assert [each.level for each in findings] == ([] if level is None else [level])
    assert all(each.is_severe or each.level == "bad" for each in findings)
    assert all(each.evidence == f"{num_empty} of 40 answers are empty" for each in findings)


def test_a_win_against_empty_answers_shows_nothing() -> None:
    (finding,) = find(ask(40), tuned=various(40), base=various(40), far=[""] * 4 + various(36))
    assert (finding.level, finding.is_severe) == ("warning", True)
    assert finding.finding == "far gives empty answers, so a win against it shows nothing."
    assert "Answers of far that are not empty" in finding.remedy


def test_the_same_answer_to_most_prompts_is_found_unless_the_data_have_it_too() -> None:
    constant = ["Sure."] * 30 + various(40)[30:]
    (finding,) = find(ask(40), tuned=constant, base=["Sure."] * 40)
    assert (finding.level, finding.is_severe) == ("warning", True)
    assert finding.evidence == "30 of 40 different prompts; in the data 1 have the same answer"
    assert find(ask(40, chosen="no"), tuned=constant) == [], "labels are the same for many prompts"
    assert find(ask(40), tuned=["Sure."] * 20 + various(20)) == []
    assert find(ask(9), tuned=["Sure."] * 9) == [], "so few prompts may have one answer by chance"
    assert find([*ask(1)] * 40, tuned=["Sure."] * 40) == [], "one prompt, one answer"


def decide(answers: dict[str, dict[str, int]]) -> str:
    written = judged(win("base", 0.9), win("guide", 0.8), answers=answers)
    return assess(Report.from_dict(written), EvaluationConfig())[0].word


def test_whatever_a_judge_says_of_them_such_answers_do_not_ship() -> None:
    well = {"n": 40, "empty": 0, "prompts": 40, "same": 1, "same_in_data": 1}
    assert decide({"tuned": well, "base": well, "guide": well}) == "ship"
    assert decide({"tuned": {**well, "empty": 40, "same": 0}, "base": well, "guide": well}) == "do_not_ship"
    assert decide({"tuned": well, "base": {**well, "empty": 10}, "guide": well}) == "undecided"
    assert decide({"tuned": {**well, "same": 39}, "base": well, "guide": well}) == "undecided"
