"""What a report is found to say, and what it decides, from hand-written numbers."""

import json
from math import inf, nan
from typing import Any

import pytest

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.decision import Decision, Finding, Gain, decide
from prefopt.evaluation.findings import assess
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.render import json_ready


def judge(found: dict[str, Any], **settings: Any) -> tuple[str, list[dict[str, str]]]:
    decision, findings = assess(Report.from_dict(found), EvaluationConfig(**settings))
    return decision.word, [finding.to_dict() for finding in findings]


def decide_on(found: dict[str, Any]) -> Decision:
    return assess(Report.from_dict(found), EvaluationConfig())[0]


def entry(value: float, low: float | None = None, high: float | None = None, n: int = 132) -> dict[str, Any]:
    low = value - 0.03 if low is None else low
    high = value + 0.03 if high is None else high
    return {"value": value, "ci95": [low, high], "n": n, "n_prompts": n}


def report(**changes: Any) -> dict[str, Any]:
    """A healthy DPO run: +45 points, little drift."""
    found: dict[str, Any] = {
        "run": {},
        "held_out": {
            "n": 132,
            "base": {"preference_accuracy": entry(0.5), "mean_margin": entry(0.0)},
            "tuned": {"preference_accuracy": entry(0.95), "mean_margin": entry(0.6)},
            "gain": {"preference_accuracy": entry(0.45), "p_value": 1e-12, "discordant": 0.5, "effective_n": 100.0},
            "baselines": {"longer_wins": entry(0.5), "shorter_wins": entry(0.5)},
            "over_baselines": {"longer_wins": entry(0.45), "shorter_wins": entry(0.45)},
            "ties": {"base": 0, "tuned": 0},
        },
        "overfitting": {"reward_accuracy": {"train": entry(0.97), "held_out": entry(0.95), "gap": entry(0.02)}},
        "drift": {
            "kl_per_token": entry(0.2),
            "perplexity": {"base": entry(20.0), "tuned": entry(21.0), "ratio": entry(1.05)},
            "response_length": {"base": entry(50.0), "tuned": entry(52.0)},
            "finished": {"base": entry(0.9), "tuned": entry(0.9)},
            "repetition": {"base": entry(0.02), "tuned": entry(0.02)},
        },
        "likelihood": {"chosen": entry(0.1), "rejected": entry(-0.5), "chosen_fell": entry(0.2)},
    }
    return {**found, **changes}


def with_drift(**changes: Any) -> dict[str, Any]:
    found = report()
    return {**found, "drift": {**found["drift"], **changes}}


def texts(findings: list[dict[str, str]], level: str) -> str:
    return " ".join(finding["finding"] for finding in findings if finding["level"] == level)


def test_a_healthy_gain_in_ranking_says_so_and_that_no_answer_was_judged() -> None:
    decision, findings = assess(Report.from_dict(report()), EvaluationConfig())
    assert decision.word == "undecided"
    assert decision.reasons == ("Ranks held-out pairs better; its answers were not judged.",)
    assert "evaluation.judges=[classifier]" in decision.would_decide[0]
    assert [finding.level for finding in findings if finding.level in ("bad", "warning")] == []


def gain_of_answers(low: float, num_prompts: int = 200) -> Gain:
    return Gain(
        "win_rate",
        "the win rate",
        "Its answers win",
        Estimate(low + 0.1, low, low + 0.2, 200, num_prompts),
        0.05,
        True,
    )


def test_a_gain_of_judged_answers_ships_if_nothing_speaks_against_it() -> None:
    assert decide([gain_of_answers(0.06)], [], 30) == Decision("ship", ("Its answers win.",), decided_by=("win_rate",))
    assert decide([gain_of_answers(0.04)], [], 30).word == "undecided"
    few = decide([gain_of_answers(0.06, num_prompts=29)], [], 30)
    assert few.reasons == ("Held-out data of 29 prompts are too few to judge by; 30 are the least.",)
    severe = Finding("warning", "The model drifted.", "", is_severe=True, remedy="Less of it.")
    held_back = decide([gain_of_answers(0.06)], [severe], 30)
    assert (held_back.word, held_back.reasons[0], held_back.would_decide) == (
        "undecided", "The model drifted.", ("Less of it.",),
    )  # fmt: skip
    assert decide([gain_of_answers(0.06)], [Finding("warning", "Overfitting.", "")], 30).word == "ship"
    ruined = decide([gain_of_answers(0.06)], [Finding("bad", "Ruined.", "")], 30)
    assert ruined == Decision("do_not_ship", ("Ruined.",))


def test_nothing_that_was_measured_decides_nothing() -> None:
    decision = decide_on({"held_out": {}})
    assert decision.word == "undecided"
    assert decision.reasons == ("Nothing was measured on held-out data.",)


def test_held_out_data_that_nobody_read_lack_a_judge_and_no_data() -> None:
    answers = {name: {"n": 40, "empty": 0, "prompts": 40, "same": 1, "same_in_data": 1} for name in ("base", "tuned")}
    decision = decide_on({"held_out": {"n": 40}, "answers": answers})
    assert decision.reasons == ("Answers to held-out prompts are there, but no judge and no task has read them.",)
    assert "evaluation.judges" in decision.would_decide[0]
    assert not any("data.held_out" in each for each in decision.would_decide)
    decision = decide_on({"held_out": {"n": 40}, "answers": {"base": answers["base"]}, "judges": {"rule": None}})
    assert decision.reasons == ("Nothing compares the answers of tuned with those of another contestant.",)


def test_a_gain_that_may_be_below_the_least_one_is_not_shown() -> None:
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.08, 0.02, 0.14)
    decision = decide_on(found)
    assert decision.reasons[0] == "A gain in preference accuracy is there, but it may be too small to matter."
    assert "held-out prompts instead of 132, if the true gain is the measured one" in decision.would_decide[0]
    assert judge(found, min_gain=0.01)[1][0]["level"] == "good"


def test_a_rule_without_a_model_or_chance_explains_a_gain_away() -> None:
    found = report()
    found["held_out"]["over_baselines"]["longer_wins"] = entry(0.02)
    assert "A rule without a model may do as well: longer wins" in texts(judge(found)[1], "warning")
    assert "Ranks held-out pairs better" in decide_on(found).reasons[0]
    found["held_out"]["baselines"]["longer_wins"] = entry(0.95)
    assert decide_on(found).reasons == ("A rule without a model does as well: longer wins.",)
    assert not any("instead of" in each for each in decide_on(found).would_decide)  # more prompts would not help
    found["held_out"]["tuned"]["preference_accuracy"] = entry(0.455)
    found["held_out"]["base"]["preference_accuracy"] = entry(0.409)
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.2, 0.1, 0.3)
    reasons = " ".join(decide_on(found).reasons)
    assert "A rule without a model does as well: longer wins" in reasons
    assert "chance would do better" in reasons


def test_one_prompt_with_many_pairs_is_too_few_whatever_its_interval() -> None:
    found = report()
    one = {**entry(0.4, 0.3, 0.5, n=40), "n_prompts": 1}
    found["held_out"]["gain"]["preference_accuracy"] = one
    decision, findings = assess(Report.from_dict(found), EvaluationConfig())
    assert decision.reasons[0] == "Held-out data of 1 prompt are too few to judge by; 30 are the least."
    assert "At least 30 held-out prompts instead of 1" in decision.would_decide[0]
    assert "n = 40 of 1 prompt" in findings[0].evidence


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(
    ("block", "key", "name"),
    [
        (("drift", "perplexity"), "tuned", "Neutral perplexity (tuned)"),
        (("drift",), "kl_per_token", "KL per token"),
        (("held_out", "tuned"), "mean_margin", "Mean margin (tuned)"),
        (("likelihood",), "chosen", "Chosen"),
        (("overfitting", "reward_accuracy"), "gap", "gap in Reward accuracy"),
    ],
)
def test_a_number_that_is_not_finite_is_named_and_not_healthy(
    value: float, block: tuple[str, ...], key: str, name: str
) -> None:
    found: dict[str, Any] = report()
    inner = found
    for part in block:
        inner = inner[part]
    inner[key] = {"value": value, "ci95": [value, value], "n": 132}
    word, findings = judge(found)
    assert word == "do_not_ship"
    assert findings[0]["finding"].startswith("Not a finite number: ")
    assert name in findings[0]["finding"]
    assert judge(json.loads(json.dumps(json_ready(found))))[0] == "do_not_ship", "null in report.json is as bad"


def test_demonstrations_that_are_all_nan_do_not_ship() -> None:
    found = sft_report(entry(nan))
    found["held_out"]["tuned"]["loss"] = entry(nan)
    assert judge(found)[0] == "do_not_ship"


def test_numbers_of_a_broken_base_are_no_fault_of_the_tuned_model() -> None:
    broken = {"base": entry(nan), "tuned": entry(20.0), "ratio": entry(nan)}
    found = with_drift(kl_per_token=entry(nan), perplexity=broken)
    found["held_out"]["tuned"]["reward_margin"] = entry(nan)
    word, findings = judge(found)
    assert word == "undecided"
    assert "The base gives numbers that are not finite" in texts(findings, "warning")
    found["drift"]["perplexity"]["tuned"] = entry(nan)
    assert judge(found)[0] == "do_not_ship", "a tuned model that is broken too"


def test_a_report_that_was_made_up_to_be_ruined_does_not_ship() -> None:
    perplexity = {"base": entry(10.0), "tuned": entry(49.0), "ratio": entry(4.9)}
    length = {"base": entry(50.0), "tuned": entry(160.0)}
    found = with_drift(perplexity=perplexity, kl_per_token=entry(1.9), response_length=length)
    found["held_out"]["tuned"]["preference_accuracy"] = entry(0.30)
    found["held_out"]["base"]["preference_accuracy"] = entry(0.45)
    found["held_out"]["gain"]["preference_accuracy"] = entry(-0.15, -0.22, -0.08)
    assert judge(found)[0] == "do_not_ship"


def test_held_out_prompts_that_training_saw_are_severe_from_a_few_percent_on() -> None:
    few, many = ({**report(), "overlap": {"prompts": 132, "exact": 1, "near": near}} for near in (1, 2))
    assert "also training prompts: 1 word for word and 1 nearly" in texts(judge(few)[1], "warning")
    assert "severe" not in judge(few)[1][0]
    assert judge(many)[1][0]["severe"] is True
    assert "also training prompts" in decide_on(many).reasons[0]


def test_a_ruined_model_is_named_although_it_wins() -> None:
    perplexity = {"base": entry(2.8), "tuned": entry(182.0), "ratio": entry(64.6)}
    decision, findings = judge(with_drift(perplexity=perplexity, kl_per_token=entry(3.7)))
    assert decision == "do_not_ship"
    assert findings[0]["level"] == "bad"
    assert "ruined, although it ranks 95.0 %" in findings[0]["finding"]
    assert "2.8 -> 182.0" in findings[0]["evidence"]


@pytest.mark.parametrize(
    ("base", "tuned", "is_said"), [(0.5, 0.0, False), (0.5, 0.5, False), (0.2, 0.3, True), (0.9, 0.6, True)]
)
def test_ranking_speaks_for_a_ruined_model_only_above_half_or_its_base(
    base: float, tuned: float, is_said: bool
) -> None:
    found = with_drift(kl_per_token=entry(3.7))
    for name, value in ((BASE, base), (TUNED, tuned)):
        found["held_out"][name]["preference_accuracy"] = entry(value)
    ruined = next(each["finding"] for each in judge(found)[1] if "ruined" in each["finding"])
    assert ("although" in ruined) == is_said


def test_a_number_that_rounds_to_zero_has_no_minus() -> None:
    found = with_drift(kl_per_token=entry(-0.001))
    found["overfitting"]["reward_accuracy"]["gap"] = entry(-0.0001)
    evidence = " ".join(finding["evidence"] for finding in judge(found)[1])
    assert "KL to the base 0.00 nats" in evidence
    assert "gap +0.0 points [-3.0, +3.0]" in evidence


def test_strong_drift_warns_without_stopping() -> None:
    found = with_drift(perplexity={"base": entry(2.8), "tuned": entry(6.9), "ratio": entry(2.4)})
    assert "drifted far" in texts(judge(found)[1], "warning")
    decision = decide_on(found)
    assert decision.word == "undecided"
    assert "drifted far" in decision.reasons[0]
    assert "Ranks held-out pairs better" in decision.reasons[1]


def test_what_of_the_runs_own_files_cannot_be_trusted_is_said_and_decides_nothing() -> None:
    decision, findings = judge(report(run={"lost_records": 3, "model_is_sealed": False}))
    assert decision == "undecided"
    assert "what metrics.jsonl has lost" in texts(findings, "warning")
    assert "whether model/ is what training left there" in texts(findings, "warning")
    assert not texts(judge(report(run={"model_is_sealed": True}))[1], "warning")


def test_a_gain_that_may_be_nothing_is_undecided() -> None:
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.04, -0.02, 0.10)
    decision, findings = judge(found)
    assert decision == "undecided"
    assert (
        "with 50 % ranked in another way than by the base, they show gains of about 21 points"
        in findings[0]["evidence"]
    )


def test_a_loss_does_not_ship() -> None:
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(-0.2, -0.3, -0.1)
    assert judge(found)[0] == "do_not_ship"


def test_a_length_rule_that_does_as_well_is_said() -> None:
    found = report()
    found["held_out"]["baselines"]["longer_wins"] = entry(0.96)
    assert "longer wins" in texts(judge(found)[1], "warning")


def test_overfitting_displacement_and_longer_answers_are_said() -> None:
    found = with_drift(response_length={"base": entry(50.0), "tuned": entry(120.0)})
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.3, 0.2, 0.4)
    found["likelihood"]["chosen"] = entry(-0.9)
    warnings = texts(judge(found)[1], "warning")
    assert "Overfitting" in warnings
    assert "likelihood displacement" in warnings
    assert "2.4 times as long" in warnings


def test_a_model_that_repeats_itself_does_not_ship() -> None:
    assert judge(with_drift(repetition={"base": entry(0.02), "tuned": entry(0.6)}))[0] == "do_not_ship"


def test_drift_that_was_not_measured_is_said() -> None:
    decision, findings = judge(report(drift={}))
    assert decision == "undecided"
    assert "would not be seen" in texts(findings, "warning")
    assert next(each for each in findings if "would not be seen" in each["finding"])["severe"]


def sft_report(change: dict[str, Any]) -> dict[str, Any]:
    held_out = {
        "n": change["n"],
        "base": {"loss": entry(3.0)},
        "tuned": {"loss": entry(2.0)},
        "gain": {"loss": change},
    }
    return report(held_out=held_out, overfitting={}, likelihood=None)


def test_demonstrations_are_judged_by_their_paired_loss() -> None:
    likelier = "Held-out demonstrations became likelier; its answers were not judged."
    assert decide_on(sft_report(entry(-1.0))).reasons == (likelier,)
    assert judge(sft_report(entry(0.5)))[0] == "do_not_ship"
    assert judge(sft_report(entry(0.0)))[0] == "undecided"
    hardly = sft_report(entry(-0.001, -0.0015, -0.0005))
    assert "hardly more likely" in texts(judge(hardly)[1], "warning")
    assert likelier not in decide_on(hardly).reasons


def test_the_gap_of_demonstrations_is_judged_too() -> None:
    found = sft_report(entry(-1.0))
    found["overfitting"] = {"loss": {"train": entry(1.0), "held_out": entry(2.0), "gap": entry(1.0, 0.8, 1.2)}}
    assert "Overfitting: much better on the demonstrations" in texts(judge(found)[1], "warning")


def test_a_gap_to_other_data_than_the_runs_own_is_not_called_overfitting() -> None:
    found = report(data={"notes": [], "counts": {}, "is_other": True})
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.3, 0.2, 0.4)
    assert "Overfitting" not in texts(judge(found)[1], "warning")
    assert "other data than the run's own may differ" in texts(judge(found)[1], "info")


def test_a_handful_of_demonstrations_decides_nothing() -> None:
    assert judge(sft_report(entry(-1.0, n=4)))[0] == "undecided"


def test_a_small_but_certain_gap_is_not_called_alike() -> None:
    found = report()
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.06, 0.02, 0.10)
    assert "Somewhat better" in texts(judge(found)[1], "info")


def test_a_gap_in_favour_of_the_held_out_pairs_is_not_called_alike() -> None:
    found = report()
    found["overfitting"]["reward_accuracy"]["gap"] = entry(-0.15, -0.21, -0.09)
    assert "Better on held-out pairs than on those it was trained on" in texts(judge(found)[1], "info")
    assert "about alike" not in texts(judge(found)[1], "info")


def test_a_gain_of_a_handful_of_pairs_is_said_to_be_of_too_few() -> None:
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.417, 0.167, 0.667, n=12)
    found["overfitting"]["reward_accuracy"] |= {"held_out": entry(0.5, n=12), "gap": entry(0.5, 0.2, 0.8)}
    decision, findings = judge(found)
    assert decision == "undecided"
    assert "show a gain, but of too few prompts to judge by; 30 are" in texts(findings, "warning")
    assert "Overfitting" not in texts(findings, "warning")
    assert "as far as so few held-out pairs tell" in texts(findings, "info")


def test_of_a_model_that_has_not_moved_that_is_said_and_no_overfitting() -> None:
    found = report(likelihood={"chosen": entry(1e-5), "rejected": entry(-1e-5), "chosen_fell": entry(0.5)})
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.5, 0.3, 0.7)
    warnings = texts(judge(found)[1], "warning")
    assert "hardly moved. Raise optim.learning_rate, or train longer" in warnings
    assert "Overfitting" not in warnings
    found["likelihood"]["rejected"] = entry(-0.002)
    assert "Overfitting" in texts(judge(found)[1], "warning")


def test_what_a_few_answers_or_a_hair_show_is_not_called_ruined_or_worse() -> None:
    repeats = {"base": entry(0.0, 0.0, 0.8, n=1), "tuned": entry(0.25, 0.003, 0.97, n=1)}
    word, findings = judge(with_drift(repetition=repeats))
    assert word == "undecided"
    assert "may repeat itself; so few answers do not tell" in texts(findings, "warning")
    assert judge(with_drift(kl_per_token={"value": 2.1, "ci95": [None, None], "n": 1}))[0] == "undecided"
    assert judge(with_drift(kl_per_token={"value": 2.1, "ci95": [None, None], "n": 8}))[0] == "do_not_ship"
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(-0.003, -0.005, -0.001, n=100_000)
    word, findings = judge(found)
    assert word == "undecided"
    assert "a little worse than its base" in texts(findings, "warning")
    assert judge(sft_report(entry(0.001, 0.0005, 0.0015)))[0] == "undecided"
    assert judge(sft_report(entry(0.1, 0.05, 0.15)))[0] == "do_not_ship"


def test_what_was_not_measured_is_not_called_close_or_alike() -> None:
    only_kl = report(drift={"kl_per_token": entry(0.1)})
    assert "as far as was measured: neutral text was not" in texts(judge(only_kl)[1], "info")
    strange = with_drift(perplexity={"base": entry(2000.0), "tuned": entry(40.0), "ratio": entry(0.02)})
    assert "drifted far" in texts(judge(strange)[1], "warning")
    wide = report()
    wide["overfitting"]["reward_accuracy"]["gap"] = entry(0.0, -0.14, 0.36)
    assert "No gap between training and held-out pairs is shown, nor that there is none" in texts(
        judge(wide)[1], "info"
    )
    without = sft_report({"value": -0.8, "ci95": [None, None], "n": 69, "n_prompts": 40})
    assert "do not tell" in texts(judge(without)[1], "warning")
