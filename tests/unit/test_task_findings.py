"""Tasks decide like wins; the regression suite can only hold a model back; slices are named only beyond chance."""

from typing import Any

import numpy as np
import pytest

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.checked import sum_up_checks
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.findings import assess
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Bootstrap, Prompts, change_of_share
from prefopt.evaluation.tasks.task import Checked
from tests.unit.test_findings import entry, report, texts
from tests.unit.test_win_findings import CONTESTANTS, judged, win


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
