"""A base whose model gives no numbers is compared with nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.findings import assess
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.measure import Measured
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.sampling import Answer, NoNumbersError
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Prompts
from prefopt.evaluation.summary import Summary
from prefopt.reports.render import render_report

NUM = 3
PROMPTS = Prompts.all_different(NUM)
MATERIAL = Material(
    Split(pair_prompts=PROMPTS),
    Split(pair_prompts=PROMPTS),
    ["a:0", "a:1", "a:2"],
    [],
    [Asked(f"a:{row}", f"prompt {row}", None) for row in range(NUM)],
    [],
    slices=["a", "b", "b"],
)


def scores(logp: float) -> Scores:
    return Scores(np.full(NUM, logp), np.full(NUM, 4.0))


def measured(chosen: float, rejected: float) -> Measured:
    pairs = PairScores(scores(chosen), scores(rejected))
    answers = [Answer([3], finished=True)] * NUM
    return Measured(pairs, pairs, None, None, scores(chosen), answers, [], answers_of={TUNED: scores(chosen)})


def summarize(base: Measured) -> Summary:
    return Summary({TUNED: measured(-4.0, -8.0), BASE: base}, MATERIAL, beta=0.1, bootstrap=Bootstrap(50, 0))


def test_of_a_base_without_numbers_no_comparison_counts_as_measured() -> None:
    whole = summarize(measured(-6.0, -6.0))
    assert {"kl_per_token", "perplexity"} <= whole.drift().keys()
    broken = summarize(replace(measured(np.nan, np.nan), samples=[], failure=NoNumbersError()))
    assert broken.drift() == {}
    assert broken.likelihood() is None
    assert (broken.slices(), broken.per_pair()) == ([], [])
    held_out = broken.held_out()
    assert held_out.gain == {}
    assert held_out.models[BASE] == {}
    assert held_out.models[TUNED]["preference_accuracy"].value == 1


def test_a_report_on_a_broken_base_is_written_and_holds_a_ship_back(tmp_path: Path) -> None:
    summary = summarize(replace(measured(np.nan, np.nan), samples=[], failure=NoNumbersError()))
    report = Report(
        run={"name": "r", "algorithm": "dpo"},
        held_out=summary.held_out(),
        overfitting=summary.overfitting(),
        drift=summary.drift(),
        failures={"base": str(NoNumbersError())},
        without_numbers=["base"],
    )
    report.decision, found = assess(report, EvaluationConfig())
    report.verdict = [each.to_dict() for each in found]
    assert report.decision.word == "undecided"
    assert report.decision.reasons[0] == "The base gives no numbers, so nothing is measured against it."
    page = render_report(report, [], [], tmp_path)
    assert "The base gives no numbers" in page.read_text()
