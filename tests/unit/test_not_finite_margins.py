"""Margins that are not finite give no share, no gain and no gap, on any page, and speak for nothing."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prefopt.comparison.metrics import from_report, from_summary
from prefopt.comparison.outcomes import read_outcomes
from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.decision import Gain, decide
from prefopt.evaluation.findings import assess
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.measure import Measured
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.run import Evaluation
from prefopt.evaluation.samples import Ranked, rank_prompts
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Estimate, Prompts, are_above_zero, change_of_share, share
from prefopt.evaluation.summary import Summary
from prefopt.reports.console import print_report
from prefopt.reports.publish import PAIRS, write
from prefopt.tracking.wandb import _values
from tests.unit.test_report_render import visible

NUM = 40
PROMPTS = Prompts.all_different(NUM)
SETTINGS = EvaluationConfig()
NAMED = "Not a finite number: "


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def scores(logps: "np.ndarray[Any, Any]") -> Scores:
    return Scores(logps, np.full(NUM, 4.0))


def measured(gap: float, broken: float = 0.0, rows: slice = slice(0, 0)) -> Measured:
    """A model whose margins are `gap`; its log-probs of the chosen answers in `rows` are `broken`."""
    chosen = np.full(NUM, -4.0)
    chosen[rows] = broken
    pairs = PairScores(scores(chosen), scores(np.full(NUM, -4.0 - 4 * gap)))
    return Measured(pairs, pairs, None, None, None, [], [])


def summarize(base: Measured, tuned: Measured) -> Summary:
    material = Material(
        Split(pair_prompts=PROMPTS),
        Split(pair_prompts=PROMPTS),
        [f"a:{row}" for row in range(NUM)],
        [],
        [Asked(f"a:{row}", f"prompt {row}", None) for row in range(NUM)],
        [],
        slices=["a"] * 10 + ["b"] * 30,
    )
    return Summary({TUNED: tuned, BASE: base}, material, beta=0.1, bootstrap=Bootstrap(50, 0))


def report_of(base: Measured, tuned: Measured) -> Report:
    summary = summarize(base, tuned)
    report = Report(
        run={"name": "r", "algorithm": "dpo"},
        held_out=summary.held_out(),
        slices=summary.slices(),
        overfitting=summary.overfitting(),
        likelihood=summary.likelihood(),
    )
    report.decision, found = assess(report, SETTINGS)
    report.verdict = [each.to_dict() for each in found]
    return report


BROKEN = [(math.nan, slice(0, 1)), (math.nan, slice(0, NUM)), (-math.inf, slice(0, 1)), (math.inf, slice(3, 5))]


@pytest.mark.parametrize(("value", "rows"), BROKEN)
def test_no_share_over_margins_that_are_not_finite_is_a_number(value: float, rows: slice) -> None:
    summary = summarize(measured(-1.0), measured(1.0, value, rows))
    held_out = summary.held_out()
    tuned, over = held_out.models[TUNED], held_out.over_baselines
    assert over is not None
    gaps = summary.overfitting()
    likelihood = summary.likelihood()
    assert likelihood is not None
    shares = [
        tuned["preference_accuracy"],
        tuned["reward_accuracy"],
        held_out.gain["preference_accuracy"],
        *over.values(),
        *(gaps[key][part] for key in gaps for part in ("train", "held_out", "gap")),
        likelihood["chosen_fell"],
    ]
    assert len(shares) == 12
    for each in shares:
        assert isinstance(each, Estimate)
        assert math.isnan(each.value)
        assert not each.has_interval
        assert each.n == each.num_prompts == NUM, "what they were measured on is known"
    compared = [held_out.p_value, held_out.discordant, held_out.effective_n]
    assert all(each is not None and math.isnan(each) for each in compared)
    assert held_out.ties == {"base": 0, "tuned": None}
    assert held_out.models[BASE]["preference_accuracy"].value == 0, "the base's own number is one"


def test_a_slice_whose_margins_are_finite_keeps_its_numbers() -> None:
    first, second = summarize(measured(-1.0), measured(1.0, math.nan, slice(0, 1))).slices()
    assert math.isnan(first["preference_accuracy"].value)
    assert math.isnan(first["gain"]["preference_accuracy"].value)
    assert first["base"]["preference_accuracy"].value == 0
    assert second["preference_accuracy"].value == second["gain"]["preference_accuracy"].value == 1


def test_finite_margins_give_the_shares_that_counting_gives() -> None:
    values = np.array([1.0, -1.0, 0.0, 2.0])
    assert are_above_zero(values).tolist() == [True, False, False, True]
    assert are_above_zero(values).dtype == bool
    broken = are_above_zero(np.array([1.0, np.nan, -np.inf, -1.0]))
    assert np.array_equal(broken, [1.0, np.nan, np.nan, 0.0], equal_nan=True)
    assert math.isnan(share(broken).value)
    assert math.isnan(change_of_share(broken, are_above_zero(values)).p_value)


@pytest.mark.parametrize(("value", "rows"), BROKEN)
def test_a_tuned_model_with_such_margins_does_not_ship_and_each_number_is_named(value: float, rows: slice) -> None:
    report = report_of(measured(-1.0), measured(1.0, value, rows))
    assert report.decision is not None
    assert report.decision.word == "do_not_ship"
    worst, *others = report.verdict or []
    assert worst["level"] == "bad"
    assert worst["finding"].startswith(NAMED)
    for named in ("Preference accuracy (tuned)", "Reward accuracy (tuned)", "gap in Preference accuracy",
                  "change of Preference accuracy", "Mean margin (tuned)"):  # fmt: skip
        assert named in worst["finding"]
    assert not [each for each in others if each["level"] == "good" or "ranks held-out pairs" in each["finding"]]


def test_a_base_with_such_margins_holds_a_ship_back_and_no_gain_over_it_is_told() -> None:
    report = report_of(measured(-1.0, math.nan, slice(0, 1)), measured(1.0))
    assert report.decision is not None
    assert report.decision.word == "undecided"
    assert report.decision.reasons[0].startswith("The base gives numbers that are not finite, so nothing is measured")
    assert "Preference accuracy (base)" in report.decision.reasons[0]
    assert "The gain in preference accuracy is not a finite number." in report.decision.reasons
    severe = [each for each in report.verdict or [] if each.get("severe")]
    assert severe[0]["level"] == "warning"
    assert not [each for each in report.verdict or [] if each["level"] == "good" or "its base" in each["finding"]]
    whole = report_of(measured(-1.0), measured(1.0))
    assert any(each["level"] == "good" for each in whole.verdict or []), "a finite base would have been beaten"


def test_margins_of_training_pairs_alone_are_enough_to_be_broken() -> None:
    tuned = replace(measured(1.0), train_pairs=measured(1.0, math.nan, slice(0, 1)).held_out_pairs)
    report = report_of(measured(-1.0), tuned)
    assert report.decision is not None
    assert report.decision.word == "do_not_ship"
    assert "gap in Preference accuracy" in report.decision.reasons[0]


def test_a_gain_without_an_interval_is_not_called_good() -> None:
    written = report_of(measured(-1.0), measured(1.0)).to_dict()
    written["held_out"]["gain"]["preference_accuracy"] |= {"value": 0.4, "ci95": [None, None]}
    written["held_out"]["over_baselines"]["longer_wins"]["ci95"] = [None, None]
    _, findings = assess(Report.from_dict(written), SETTINGS)
    texts = {each.finding: each.level for each in findings}
    assert texts["The held-out pairs do not tell: their gain has no interval."] == "warning"
    assert "A rule without a model may do as well: longer wins." in texts
    assert "good" not in texts.values()


def test_a_gain_of_answers_that_is_no_number_decides_nothing() -> None:
    gain = Gain("x", "x", "Its x is better", Estimate(math.nan, n=200, num_prompts=200), 0.0, is_of_answers=True)
    found = decide([gain], [], 30)
    assert (found.word, found.reasons) == ("undecided", ("The gain in x is not a finite number.",))


@pytest.fixture(params=[TUNED, BASE])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Report, Path]:
    sides = {BASE: measured(-1.0), TUNED: measured(1.0)}
    sides[request.param] = measured(1.0, math.nan, slice(0, 1))
    report = report_of(sides[BASE], sides[TUNED])
    write(Evaluation(report, [], summarize(sides[BASE], sides[TUNED]).per_pair()), tmp_path)
    return request.param, report, tmp_path


def test_report_json_and_pairs_jsonl_are_strict_json_with_null(written: tuple[str, Report, Path]) -> None:
    model, report, folder = written
    found = json.loads((folder / "report.json").read_text(), parse_constant=refuse)["held_out"]
    assert found[model]["preference_accuracy"] == {"value": None, "ci95": [None, None], "n": NUM, "n_prompts": NUM}
    gain = found["gain"]
    assert [gain["preference_accuracy"]["value"], gain["p_value"], gain["discordant"], gain["effective_n"]] == [
        None
    ] * 4
    assert found["ties"][model] is None
    first, second = [json.loads(line, parse_constant=refuse) for line in (folder / PAIRS).read_text().splitlines()][:2]
    assert first[f"{model}_margin"] is None
    assert second[f"{model}_margin"] == 1.0
    again, _ = assess(Report.from_dict(json.loads((folder / "report.json").read_text())), SETTINGS)
    assert again == report.decision, "what was written decides the same"


def test_pages_and_terminal_say_not_finite_and_no_percentage_of_it(written: tuple[str, Report, Path]) -> None:
    model, report, folder = written
    page = visible((folder / "report.html").read_text())
    markdown = (folder / "report.md").read_text()
    told = io.StringIO()
    print_report(report, folder / "report.html", Console(file=told, width=200))
    right, wrong = "100.0 % (91.0 to 100.0)", "0.0 % (0.0 to 9.0)"
    cells = ["not finite", right] if model == BASE else [wrong, "not finite"]
    assert f"| {cells[0]} | {cells[1]} | not finite | 40 |" in markdown
    assert (
        f"Ties: {BASE} {'not finite' if model == BASE else 0}, {TUNED} {'not finite' if model == TUNED else 0}" in page
    )
    row = next(line for line in told.getvalue().splitlines() if line.strip().startswith("Preference accuracy"))
    assert row.split()[2:] == f"{cells[0]} {cells[1]} 40".split()
    assert "| a (Preference accuracy) |" in markdown
    for text in (page, markdown, told.getvalue()):
        assert "not finite" in text
        assert "p = " not in text
        assert not re.search(r"\b(nan|inf)\b", text)
        sentence = (
            "Tuned gives numbers that are not finite" if model == TUNED else "the base model gives numbers that are"
        )
        assert sentence in text
    assert f"{model}: not known, 1 of 40 pairs are not finite" in page


def test_wandb_and_compare_get_no_number_for_what_is_not_finite(written: tuple[str, Report, Path]) -> None:
    model, report, folder = written
    summary = _values(report.to_dict()["held_out"], "held_out")
    assert summary[f"held_out/{model}/preference_accuracy"] is None
    assert summary["held_out/gain/preference_accuracy"] is None
    json.dumps(summary, allow_nan=False)
    key = "preference_accuracy" if model == TUNED else "base_preference_accuracy"
    in_report = from_report(json.loads((folder / "report.json").read_text()))
    for found in (in_report, from_summary(summary)):
        assert key not in found
    whole = report_of(measured(-1.0), measured(1.0)).to_dict()
    assert key in from_report(whole), "a finite one is read"
    outcomes = read_outcomes(folder, None)
    margins = {} if outcomes is None else outcomes.margins
    assert ("tuned_margin" in margins) is (model != TUNED)


def test_a_pair_without_a_finite_margin_is_not_ranked() -> None:
    prompts = [[1], [2], [2], [3]]
    logps = np.array([np.nan, -1.0, -9.0, -1.0])
    pairs = PairScores(Scores(logps, np.ones(4)), Scores(np.full(4, -2.0), np.ones(4)))
    table: Any = {"prompt_ids": prompts}
    asked = [Asked(f"a:{row}", f"prompt {row}", None) for row in range(3)]
    material = Material(Split(pairs=table), Split(), ["a"] * 4, [[1], [2], [3]], asked, [])
    assert rank_prompts(material, pairs) == [Ranked(0, 0), Ranked(2, 1), Ranked(1, 0)]
