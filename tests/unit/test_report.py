"""report.json keeps its documented keys, whoever reads it back."""

import json
import math
from typing import Any

import pytest

import prefopt
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.report import AnswersEstimate, HeldOut, Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.facts import subtitle
from prefopt.reports.sections import audit_table, headline
from prefopt.runs.files import REPORT_FORMAT

ESTIMATE = {"value": 0.5, "ci95": [0.4, 0.6], "n": 132}


def test_a_report_says_its_format_and_which_prefopt_wrote_it() -> None:
    written = Report(date="2026-11-27").to_dict()
    assert list(written)[:3] == ["format", "version", "date"]
    assert (written["format"], written["version"]) == (REPORT_FORMAT, prefopt.__version__)


def test_what_was_written_comes_back() -> None:
    written: dict[str, Any] = {
        "format": 1,
        "version": "0.0.9",
        "held_out": {"n": 3, "base": {"loss": ESTIMATE}, "tuned": {"loss": ESTIMATE}, "gain": {"loss": ESTIMATE}},
        "overfitting": {"loss": {"train": ESTIMATE, "held_out": ESTIMATE, "gap": 0.25}},
        "drift": {
            "kl_per_token": ESTIMATE,
            "kl_per_response": {**ESTIMATE, "num_cut": 2, "cut_at": 64},
            "perplexity": {"base": ESTIMATE, "tuned": ESTIMATE, "ratio": ESTIMATE},
        },
        "likelihood": None,
        "decision": {"word": "ship", "reasons": ["Better."], "would_decide": []},
    }
    report = Report.from_dict(json.loads(json.dumps(written)))
    assert report.drift["kl_per_response"] == AnswersEstimate(0.5, 0.4, 0.6, 132, num_cut=2, cut_at=64)
    assert report.held_out.model("tuned") == {"loss": Estimate(0.5, 0.4, 0.6, 132)}
    assert report.to_dict() == written


def test_a_report_of_an_earlier_version_lacks_what_it_lacks() -> None:
    report = Report.from_dict(
        {"format": 1, "held_out": None, "drift": {"kl_per_token": {"value": None, "ci95": None}}}
    )
    assert (report.version, report.held_out, report.likelihood) == (None, HeldOut(), None)
    kl = report.drift["kl_per_token"]
    assert isinstance(kl, Estimate)
    assert math.isnan(kl.value)
    assert math.isnan(kl.low)


FOUND = {"check": "length_bias", "level": "note", "count": 1, "share": 0.5, "summary": "1 row"}


@pytest.mark.parametrize("wrong", [3, {}, {"gate": "off"}, {"gate": "off", "rows": 2, "checks": [{}]}])
def test_a_damaged_audit_is_no_part_of_a_report_and_a_whole_one_is_shown_by_titles(wrong: Any) -> None:
    assert audit_table(Report.from_dict({"audit": wrong})) is None
    table = audit_table(Report.from_dict({"audit": {"gate": "off", "rows": 2, "checks": [FOUND]}}))
    assert table is not None
    assert [row.check for row in table.findings] == ["Length bias"]


@pytest.mark.parametrize("block", ["held_out", "overfitting", "drift", "likelihood"])
@pytest.mark.parametrize("wrong", [3, "text", [1], {"loss": 3}, {"tuned": [1]}, {"gain": "text", "ties": [1]}])
def test_a_block_of_another_form_was_not_measured(block: str, wrong: Any) -> None:
    report = Report.from_dict({block: wrong})
    assert not any(report.held_out.models.values())
    found = (report.held_out.gain, report.overfitting, report.drift, report.likelihood)
    assert not any(found)
    report.to_dict()


@pytest.mark.parametrize("bounds", [5, [0.1], [0.1, 0.2, 0.3], ["a", "b"], {"low": 0.1}, "ab"])
def test_an_interval_of_another_form_is_not_known(bounds: Any) -> None:
    found = Report.from_dict({"drift": {"kl_per_token": {"value": 0.5, "ci95": bounds, "n": "many"}}}).drift
    kl = found["kl_per_token"]
    assert isinstance(kl, Estimate)
    assert (kl.value, math.isnan(kl.low), math.isnan(kl.high), kl.n) == (0.5, True, True, None)


def test_every_contestant_stands_in_the_held_out_block() -> None:
    block = HeldOut(3, {"base": {}, "tuned": {}, "prompted": {"loss": Estimate(0.5, 0.4, 0.6, 132)}}).to_dict()
    assert list(block) == ["n", "base", "tuned", "prompted", "gain"]
    assert block["prompted"] == {"loss": ESTIMATE}
    assert HeldOut.from_dict(block).to_dict() == block


def test_an_earlier_ship_was_for_ranking_alone() -> None:
    assert Report.from_dict({"decision": "do_not_ship"}).decision == Decision("do_not_ship")
    earlier = Report.from_dict({"decision": "ship"}).decision
    assert earlier is not None
    assert earlier.word == "undecided"
    assert "for a gain in ranking alone" in earlier.reasons[0]


def compared(**further: Any) -> Report:
    """A report without a training run."""
    run = {"name": "mine against base", "tuned": "models/mine", "model": "models/plain", "data": {"num_held_out": 132}}
    return Report.from_dict({"run": run, "held_out": {"n": 132}, **further})


def test_the_head_of_a_comparison_names_its_models_and_no_algorithm() -> None:
    assert subtitle(compared()) == "models/mine against models/plain, 132 examples held out"
    assert subtitle(Report(run={"tuned": None, "model": "models/plain"})) == "Answers of models/plain"
    assert subtitle(Report(run={"algorithm": "dpo", "model": "models/plain"})) == "DPO of models/plain"


def test_where_answers_alone_were_compared_the_sentence_says_how_often_they_won() -> None:
    known = {"base": {"is_untuned": True}, "tuned": {"is_untuned": False}}
    win = {**ESTIMATE, "value": 0.75, "ci95": [0.6, 0.9], "n": 60, "a": "tuned", "b": "base", "judge": "rule"}
    answers = {name: {"n": 60, "empty": 0} for name in known}
    won = headline(compared(contestants=known, win_rates=[win], judges={"rule": None}, answers=answers)).sentence
    assert won == (
        "Tuned wins against base on 75.0 % of 60 held-out prompts (95 % CI 60.0 to 90.0), ties counted half "
        "(judge: rule)."
    )
    read = headline(compared(contestants=known, answers=answers)).sentence
    assert read == "base and tuned answered 60 held-out prompts; who won was not measured."


def test_why_there_is_no_win_rate_of_the_tuned_model_is_said_of_what_was_judged() -> None:
    nothing = {"value": None, "ci95": [None, None], "n": 0, "n_prompts": 0}
    blank = {"a": "tuned", "b": "base", "judge": "lm", **nothing, "unread": 24}
    known = {**blank, "judge": "rule", "value": 0.4, "ci95": [0.3, 0.5], "n": 24}
    answers = {name: {"n": 1} for name in ("base", "tuned", "brief")}
    found = {"answers": answers, "judges": {"lm": None, "rule": None}, "win_rates": [blank, known]}
    begun = "base, tuned and brief answered 1 held-out prompt; "
    said = headline(Report.from_dict(found)).sentence
    assert said == begun + "the judge lm gave no verdict, and another one does not decide."
    alone = headline(Report.from_dict({**found, "win_rates": [blank]})).sentence
    assert alone == begun + "the judge lm gave no verdict."
    others = [{**known, "a": "brief"}]
    assert headline(Report.from_dict({**found, "win_rates": others})).sentence == (
        begun + "tuned did not compete, so only the others were judged."
    )
    assert headline(compared()).sentence.startswith("Nothing was measured on held-out data")
