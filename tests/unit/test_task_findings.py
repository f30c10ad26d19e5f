"""Tasks decide like wins; the regression suite can only hold a model back; slices are named only beyond chance."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.checked import sum_up_checks
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.findings import assess
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Bootstrap, Prompts, change_of_means, change_of_share
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.evaluation.tasks.text_overlap import TextOverlapTask
from prefopt.reports.render import render_report
from prefopt.reports.sections import headline
from tests.unit.test_findings import entry, report, texts
from tests.unit.test_win_findings import CONTESTANTS, judged, win

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def task(gains: dict[str, dict[str, Any]], *, is_share: bool = True, **values: float) -> dict[str, Any]:
    rates = {"base": 0.5, "tuned": 0.9, **values}
    sides = {name: {"values": {"valid": entry(rate)}} for name, rate in rates.items()}
    return {"main": "valid", "is_share": is_share, "contestants": sides, "gains": gains}


def judge(found: dict[str, Any], **settings: Any) -> tuple[Decision, list[dict[str, Any]]]:
    decision, findings = assess(Report.from_dict(found), EvaluationConfig(**settings))
    return decision, [finding.to_dict() for finding in findings]


def checked(**tasks: Any) -> dict[str, Any]:
    return report(tasks=tasks, contestants=CONTESTANTS)


def test_a_gain_in_a_task_over_everything_without_tuning_ships() -> None:
    gains = {"base": entry(0.4), "guide": entry(0.2)}
    decision, findings = judge(checked(json_schema=task(gains)))
    assert decision.word == "ship"
    assert decision.reasons == ("Its answers do better than those of base and guide in json_schema.",)
    assert "better than those of guide in json_schema" in texts(findings, "good")


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("json_schema", "that what the answers say is right: the task mine reads their form alone"),
        ("label", "right where the data are not: the task mine compares it with the label"),
        ("text_overlap", "true or well written: the task mine compares letters"),
        ("style", "make sense: the task mine reads wording alone"),
        ("code", "does what was asked: the task mine parses it and runs nothing"),
        ("custom", "people like them better: the task mine is a function of yours"),
        ("", "people like them better: the task mine sees only what it checks"),
    ],
)
def test_what_ship_does_not_prove_depends_on_the_task_that_decides(kind: str, reads: str) -> None:
    won = {**task({"base": entry(0.4), "guide": entry(0.2)}), "kind": kind}
    decision, _ = judge(checked(mine=won))
    assert decision.word == "ship"
    assert decision.caveat.startswith("It does not prove that ")
    assert reads in decision.caveat
    assert decision.decided_by == ("mine",)
    assert Decision.from_written(decision.to_dict()) == decision


def test_a_judge_that_decides_nothing_has_no_say_in_what_ship_does_not_prove(tmp_path: Path) -> None:
    won = task({"base": entry(0.4), "guide": entry(0.2)})
    tied = judged(win("base", 0.5), win("guide", 0.5), tasks={"mine": won})
    found = Report.from_dict(tied)
    found.decision, findings = assess(found, EvaluationConfig())
    found.verdict = [finding.to_dict() for finding in findings]
    assert found.decision.word == "ship"
    assert "judge" not in found.decision.caveat
    render_report(found, [], [], tmp_path)
    card = (tmp_path / "card.md").read_text()
    number = "valid: tuned 90.0 %, change +20.0 points [+17.0, +23.0], n = 132"
    assert f"Its answers do better than those of guide in mine. *{number}*" in card
    assert headline(found).sentence.startswith("Its answers do better than those of base in mine: valid: base 50.0 %")


def test_a_win_and_a_task_that_both_decide_have_one_sentence_on_what_they_do_not_prove() -> None:
    won = {**task({"base": entry(0.4), "guide": entry(0.2)}), "kind": "code"}
    decision, _ = judge(judged(win("base", 0.8), win("guide", 0.7), tasks={"mine": won}))
    assert decision.decided_by == ("win_rate", "mine")
    assert decision.caveat.count("It does not prove") == 1
    assert "held-out pairs; nor that the code does what was asked" in decision.caveat


def test_the_strongest_without_tuning_decides_in_a_task_too() -> None:
    decision, findings = judge(checked(json_schema=task({"base": entry(0.4), "guide": entry(0.01)})))
    assert decision.word == "undecided"
    assert "not shown to do better than those of guide" in texts(findings, "warning")
    decision, _ = judge(checked(json_schema=task({"base": entry(0.4), "guide": entry(-0.2)})))
    assert decision == Decision("do_not_ship", ("Its answers do worse than those of guide in json_schema.",))
    decision, _ = judge(checked(json_schema=task({"base": entry(0.4)})))
    assert "No base with a prompt competed" in decision.reasons[0]


def test_numbers_on_another_scale_count_from_above_0_on() -> None:
    gains = {"base": entry(3.0, 0.5, 5.5), "guide": entry(3.0, 0.5, 5.5)}
    assert judge(checked(chrf=task(gains, is_share=False, base=40, tuned=43)))[0].word == "ship"


def test_a_task_of_few_prompts_decides_nothing() -> None:
    few = {name: {**entry(0.5, n=12), "n_prompts": 12} for name in ("base", "guide")}
    assert judge(checked(json_schema=task(few)))[0].word == "undecided"


def test_a_model_that_breaks_plain_questions_does_not_ship_though_it_wins() -> None:
    broken = judged(win("base", 0.9), win("guide", 0.8), tasks={"regression": task({"base": entry(-0.3)}, tuned=0.2)})
    decision, findings = judge(broken)
    assert decision.word == "do_not_ship"
    assert "the tuning broke something" in decision.reasons[0]
    assert "plain questions worse" in texts(findings, "bad")
    kept = judged(win("base", 0.9), win("guide", 0.8), tasks={"regression": task({"base": entry(0.01)})})
    assert judge(kept)[0].word == "ship"
    weak = judged(win("base", 0.9), win("guide", 0.8), tasks={"regression": task({"base": entry(0.0)}, base=0.01)})
    assert "cannot show what the tuning broke" in texts(judge(weak)[1], "info")


def test_a_gain_in_plain_questions_decides_nothing() -> None:
    decision, _ = judge(checked(regression=task({"base": entry(0.5)})))
    assert decision.word == "undecided"
    assert decision.reasons == ("Ranks held-out pairs better; its answers were not judged.",)


def test_the_worst_slice_is_named() -> None:
    slices = [
        {"grouping": "topic", "name": name, "rate": entry(value, n=40), "gap": entry(0.1), "p_value": p}
        for name, value, p in (("refunds", 0.3, 0.001), ("tents", 0.9, 1.0))
    ]
    worst = {"slices": slices, "worst": {"grouping": "topic", "name": "refunds"}}
    findings = judge(judged(win("base", 0.9), win("guide", 0.8), answer_slices=worst))[1]
    assert "Its answers do worst where topic is refunds." in texts(findings, "warning")
    even = judged(win("base", 0.9), answer_slices={"slices": slices, "worst": None})
    assert "worst" not in texts(judge(even)[1], "warning")


def test_a_style_that_moved_far_on_unrelated_questions_is_said() -> None:
    def style(ratio: float | None, *, differs: bool = True) -> dict[str, Any]:
        return {"distances": {"ngram_cosine": {"ratio": ratio}}, "differs": differs, "n_texts": 114}

    assert "Its style moved far" in texts(judge(report(style=style(12.6)))[1], "warning")
    decision, _ = judge(report(style=style(12.6)))
    assert any(each.startswith("A run whose style stays with its task") for each in decision.would_decide)
    assert not any("what its base could do" in each for each in decision.would_decide)
    for quiet in (style(4.9), style(12.6, differs=False), style(None)):
        assert "style" not in texts(judge(report(style=quiet))[1], "warning")


def found(values: list[float | bool], **higher: bool) -> Checked:
    return Checked({"main": np.array(values)}, {"main": True, **higher})


def test_gains_are_paired_over_the_answers_that_both_have() -> None:
    base, tuned = [True, False, False, True] * 10, [True, True, False, True] * 10
    result = sum_up_checks({"base": found(base), "tuned": found(tuned)}, Prompts.all_different(40), Bootstrap(200, 0))
    wanted = change_of_share(np.array(base), np.array(tuned)).estimate
    assert result.is_share
    assert (result.gains["base"].value, result.gains["base"].low) == pytest.approx((wanted.value, wanted.low))
    assert result.values["tuned"]["main"].value == 0.75
    some = sum_up_checks(
        {"base": found([1.0, np.nan, 30.0] * 10), "tuned": found([2.0, 5.0, np.nan] * 10)},
        Prompts.all_different(30), Bootstrap(200, 0),
    )  # fmt: skip
    assert not some.is_share
    assert (some.gains["base"].value, some.gains["base"].n) == (1.0, 10)


def summed_up(**values: list[float | bool]) -> dict[str, Any]:
    checks = {name: found(each) for name, each in values.items()}
    num = len(values["tuned"])
    return sum_up_checks(checks, Prompts.all_different(num), Bootstrap(200, 0)).to_dict()


@pytest.mark.parametrize(
    ("num", "others", "whose"),
    [
        (29, {"base": 0, "guide": 0}, "tuned: 29 of 60"),
        (0, {"base": 0, "guide": 7}, "guide: 7 of 60"),
        (7, {"base": 60, "guide": 7}, "tuned: 7 of 60, base: 60 of 60, guide: 7 of 60"),
    ],
)
def test_a_task_without_a_value_for_many_answers_does_not_ship(num: int, others: dict[str, int], whose: str) -> None:
    values = {"tuned": [np.nan] * num + [1.0] * (60 - num)}
    values |= {name: [0.0] * (60 - each) + [np.nan] * each for name, each in others.items()}
    decision, findings = judge(checked(half=summed_up(**values)))
    assert decision.word == "undecided"
    assert decision.reasons[0].startswith("The task half has no value for many answers of ")
    assert [each["evidence"] for each in findings if each.get("severe")] == [whose]
    assert decision.would_decide[0].startswith("A task half with a value for every answer")


def test_a_gain_in_a_task_that_is_not_shown_says_how_many_prompts_would_show_it() -> None:
    some = summed_up(tuned=[1.0] * 8 + [0.0] * 52, base=[0.0] * 60, guide=[0.0] * 60)
    decision, _ = judge(checked(mine=some))
    assert decision.word == "undecided"
    told = re.search(
        r"about ([\d,]+) held-out prompts instead of 60, if the true gain", " ".join(decision.would_decide)
    )
    assert told is not None
    num, rng = int(told[1].replace(",", "")), np.random.default_rng(0)
    draws = [(rng.random(num) < 8 / 60).astype(float) for _ in range(300)]
    shown = [change_of_means(each, Prompts.all_different(num))[0].low > 0.05 for each in draws]
    assert 0.7 < np.mean(shown) < 0.95, "eight of ten such studies would show it"


def test_where_a_task_shows_no_gain_it_says_how_large_a_one_would_be_seen() -> None:
    tied = summed_up(tuned=[1.0] * 60, base=[1.0] * 60, guide=[1.0] * 60)
    (wanted,) = judge(checked(mine=tied))[0].would_decide
    assert re.fullmatch(
        r"A larger gain in mine: of about \d+ points or more, these 60 prompts .* above 5 points.", wanted
    )
    scores = [float(number % 7) for number in range(60)]
    scaled = summed_up(tuned=scores[::-1], base=scores, guide=scores)
    (wanted,) = judge(checked(mine=scaled))[0].would_decide
    assert wanted.startswith(("A larger gain in mine: of about", "Answers to about"))


def test_too_few_answers_of_a_task_say_how_many_are_needed() -> None:
    few = summed_up(tuned=[1.0] * 6, base=[0.0] * 6, guide=[0.0] * 6)
    assert judge(checked(mine=few))[0].would_decide == (
        "Answers to at least 30 held-out prompts instead of 6: more prompts in data.held_out, or a larger "
        "data.held_out_fraction.",
    )


def test_a_judge_that_ties_everything_leaves_something_to_decide_it_too() -> None:
    decision, _ = judge(judged(win("base", 0.5), win("guide", 0.5)))
    assert any(each.startswith("A larger gain: of a win rate of") for each in decision.would_decide)


def test_a_task_without_a_value_for_a_tenth_of_the_answers_ships() -> None:
    few = summed_up(tuned=[np.nan] * 6 + [1.0] * 54, base=[0.0] * 60, guide=[0.0] * 60)
    assert judge(checked(half=few))[0].word == "ship"


def test_prompts_without_a_reference_are_left_out_of_a_task_and_not_held_against_it() -> None:
    task = TextOverlapTask("chrf", cast("CHRF", Same()))
    answers = {"base": "no", "guide": "no", "tuned": "yes"}
    asked = [None if number % 2 else "yes" for number in range(80)]
    checks = {name: task.check([Answered("p", text, chosen) for chosen in asked]) for name, text in answers.items()}
    summed = sum_up_checks(checks, Prompts.all_different(80), Bootstrap(200, 0))
    assert (summed.num_without_reference, summed.without_value, summed.gains["base"].n) == (40, {}, 40)
    assert not any(each.get("severe") for each in judge(checked(chrf=summed.to_dict()))[1])


class Same:
    """Stands for sacrebleu's chrF: 100 for the same text, else 0."""

    def sentence_score(self, answer: str, chosen: list[str]) -> Any:
        return SimpleNamespace(score=100.0 * (answer == chosen[0]))

    def corpus_score(self, answers: list[str], chosen: list[list[str]]) -> Any:
        return SimpleNamespace(score=0.0)

    def get_signature(self) -> str:
        return "same"


def test_where_lower_is_better_a_fall_is_a_gain() -> None:
    rates = {"base": 0.5, "tuned": 0.2}
    sides = {name: Checked({"main": np.full(30, rate)}, {"main": False}) for name, rate in rates.items()}
    result = sum_up_checks(sides, Prompts.all_different(30), Bootstrap(200, 0))
    assert result.gains["base"].value == pytest.approx(0.3)


def test_a_report_keeps_its_tasks_when_it_is_read_again() -> None:
    read = Report.from_dict(checked(json_schema=task({"base": entry(0.4)})))
    again = Report.from_dict(read.to_dict())
    assert again.tasks is not None
    assert again.tasks["json_schema"].gains == read.tasks["json_schema"].gains
    assert again.tasks["json_schema"].values == read.tasks["json_schema"].values


def on_task(main: str, num: int, values: dict[str, float], **details: Any) -> list[dict[str, Any]]:
    """The findings on a task that finds one number in all answers of a contestant."""
    sides = {name: Checked({main: np.full(num, each)}, {main: True}, details) for name, each in values.items()}
    result = sum_up_checks(sides, Prompts.all_different(num), Bootstrap(50, 0))
    return [each for each in judge(checked(c=result.to_dict()))[1] if main in each["evidence"] + each["finding"]]


def test_a_mean_of_few_answers_has_no_interval_and_says_so() -> None:
    (told,) = on_task("marks", 6, {"base": 23.0, "tuned": 24.0})
    assert told["evidence"] == "marks: base 23, tuned 24, change +1 [no interval], n = 6"


def test_held_out_answers_without_any_label_are_named_and_not_called_too_few() -> None:
    decision, found = judge(checked(c=label_task()))
    told = {each["finding"]: each["evidence"] for each in found if each["level"] == "warning"}
    said = "No held-out answer of the data is one of the labels of c, so nothing tells which answers are right."
    assert told[said] == "chosen answers without a label: 40 of 40"
    assert not any("Too few answers" in each for each in told)
    assert any("set its labels, or its pattern" in each for each in decision.would_decide)


def label_task() -> dict[str, Any]:
    values = {"accuracy": np.full(40, np.nan)}
    sides = {name: Checked(values, {"accuracy": True}, {"num_without_label": 40}) for name in ("base", "tuned")}
    return sum_up_checks(sides, Prompts.all_different(40), Bootstrap(50, 0)).to_dict()


def test_numbers_too_large_to_be_added_up_are_named_without_a_warning_of_numpy(
    recwarn: pytest.WarningsRecorder,
) -> None:
    (told,) = on_task("marks", 40, {"base": -1e308, "tuned": 1e308, "guide": -1e308})
    assert told["finding"] == "In c, marks is not a finite number for base, tuned and guide."
    assert not recwarn.list
    one = on_task("marks", 40, {"base": 3.0, "tuned": 5.0, "guide": 1e308})
    assert one[0]["finding"] == "In c, marks is not a finite number for guide."


def test_a_task_that_failed_holds_back_a_model_that_wins_otherwise() -> None:
    won = judged(win("base", 0.8), win("guide", 0.7), failures={"task mine": "it returned nan"})
    decision, findings = judge(won)
    assert decision.word == "undecided"
    assert decision.reasons[0] == "task mine failed, so it has no say."
    assert [each["evidence"] for each in findings if each.get("severe")] == ["it returned nan"]
