"""The decision and its reasons from hand-written numbers."""

from typing import Any

from prefopt.evaluation import verdict
from prefopt.evaluation.report import Report


def judge(found: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    return verdict.judge(Report.from_dict(found))


def entry(value: float, low: float | None = None, high: float | None = None, n: int = 132) -> dict[str, Any]:
    low = value - 0.03 if low is None else low
    high = value + 0.03 if high is None else high
    return {"value": value, "ci95": [low, high], "n": n}


def report(**changes: Any) -> dict[str, Any]:
    """A healthy DPO run: +45 points, little drift."""
    found: dict[str, Any] = {
        "run": {},
        "held_out": {
            "n": 132,
            "base": {"preference_accuracy": entry(0.5), "mean_margin": entry(0.0)},
            "tuned": {"preference_accuracy": entry(0.95), "mean_margin": entry(0.6)},
            "gain": {"preference_accuracy": entry(0.45), "p_value": 1e-12},
            "baselines": {"longer_wins": entry(0.5), "shorter_wins": entry(0.5)},
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


def test_a_healthy_gain_ships():
    decision, findings = judge(report())
    assert decision == "ship"
    assert "better than its base" in texts(findings, "good")
    assert not texts(findings, "bad")
    assert not texts(findings, "warning")


def test_a_ruined_model_is_named_although_it_wins():
    perplexity = {"base": entry(2.8), "tuned": entry(182.0), "ratio": entry(64.6)}
    decision, findings = judge(with_drift(perplexity=perplexity, kl_per_token=entry(3.7)))
    assert decision == "do_not_ship"
    assert findings[0]["level"] == "bad"
    assert "ruined, although it ranks 95.0 %" in findings[0]["finding"]
    assert "2.8 -> 182.0" in findings[0]["evidence"]


def test_a_number_that_rounds_to_zero_has_no_minus():
    found = with_drift(kl_per_token=entry(-0.001))
    found["overfitting"]["reward_accuracy"]["gap"] = entry(-0.0001)
    evidence = " ".join(finding["evidence"] for finding in judge(found)[1])
    assert "KL to the base 0.00 nats" in evidence
    assert "gap +0.0 points [-3.0, +3.0]" in evidence


def test_strong_drift_warns_without_stopping():
    decision, findings = judge(with_drift(perplexity={"base": entry(2.8), "tuned": entry(6.9), "ratio": entry(2.4)}))
    assert decision == "ship"
    assert "drifted far" in texts(findings, "warning")


def test_what_of_the_runs_own_files_cannot_be_trusted_is_said_and_decides_nothing():
    decision, findings = judge(report(run={"lost_records": 3, "model_is_sealed": False}))
    assert decision == "ship"
    assert "what metrics.jsonl has lost" in texts(findings, "warning")
    assert "whether model/ is what training left there" in texts(findings, "warning")
    assert not texts(judge(report(run={"model_is_sealed": True}))[1], "warning")


def test_a_gain_that_may_be_nothing_is_undecided():
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.04, -0.02, 0.10)
    decision, findings = judge(found)
    assert decision == "undecided"
    assert "132 pairs show shifts of about 12 points" in findings[0]["evidence"]


def test_a_loss_does_not_ship():
    found = report()
    found["held_out"]["gain"]["preference_accuracy"] = entry(-0.2, -0.3, -0.1)
    assert judge(found)[0] == "do_not_ship"


def test_a_length_rule_that_does_as_well_is_said():
    found = report()
    found["held_out"]["baselines"]["longer_wins"] = entry(0.96)
    assert "longer wins" in texts(judge(found)[1], "warning")


def test_overfitting_displacement_and_longer_answers_are_said():
    found = with_drift(response_length={"base": entry(50.0), "tuned": entry(120.0)})
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.3, 0.2, 0.4)
    found["likelihood"]["chosen"] = entry(-0.9)
    warnings = texts(judge(found)[1], "warning")
    assert "Overfitting" in warnings
    assert "likelihood displacement" in warnings
    assert "2.4 times as long" in warnings


def test_a_model_that_repeats_itself_does_not_ship():
    assert judge(with_drift(repetition={"base": entry(0.02), "tuned": entry(0.6)}))[0] == "do_not_ship"


def test_drift_that_was_not_measured_is_said():
    decision, findings = judge(report(drift={}))
    assert decision == "ship"
    assert "would not be seen" in texts(findings, "info")


def sft_report(change: dict[str, Any]) -> dict[str, Any]:
    held_out = {
        "n": change["n"],
        "base": {"loss": entry(3.0)},
        "tuned": {"loss": entry(2.0)},
        "gain": {"loss": change},
    }
    return report(held_out=held_out, overfitting={}, likelihood=None)


def test_demonstrations_are_judged_by_their_paired_loss():
    assert judge(sft_report(entry(-1.0)))[0] == "ship"
    assert judge(sft_report(entry(0.5)))[0] == "do_not_ship"
    assert judge(sft_report(entry(0.0)))[0] == "undecided"


def test_a_handful_of_demonstrations_decides_nothing():
    assert judge(sft_report(entry(-1.0, n=4)))[0] == "undecided"


def test_a_small_but_certain_gap_is_not_called_alike():
    found = report()
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.06, 0.02, 0.10)
    assert "Somewhat better" in texts(judge(found)[1], "info")


def test_a_gap_in_favour_of_the_held_out_pairs_is_not_called_alike():
    found = report()
    found["overfitting"]["reward_accuracy"]["gap"] = entry(-0.15, -0.21, -0.09)
    assert "Better on held-out pairs than on those it was trained on" in texts(judge(found)[1], "info")
    assert "about alike" not in texts(judge(found)[1], "info")


def test_a_gain_of_a_handful_of_pairs_is_said_to_be_of_too_few():
    found = report()
    found["held_out"]["n"] = 12
    found["held_out"]["gain"]["preference_accuracy"] = entry(0.417, 0.167, 0.667)
    found["overfitting"]["reward_accuracy"] |= {"held_out": entry(0.5, n=12), "gap": entry(0.5, 0.2, 0.8)}
    decision, findings = judge(found)
    assert decision == "undecided"
    assert "show a gain, but there are too few of them to judge by; 30 are the least" in texts(findings, "warning")
    assert "Overfitting" not in texts(findings, "warning")
    assert "as far as so few held-out pairs tell" in texts(findings, "info")


def test_of_a_model_that_has_not_moved_that_is_said_and_no_overfitting():
    found = report(likelihood={"chosen": entry(1e-5), "rejected": entry(-1e-5), "chosen_fell": entry(0.5)})
    found["overfitting"]["reward_accuracy"]["gap"] = entry(0.5, 0.3, 0.7)
    warnings = texts(judge(found)[1], "warning")
    assert "hardly moved. Raise optim.learning_rate, or train longer" in warnings
    assert "Overfitting" not in warnings
    found["likelihood"]["rejected"] = entry(-0.002)
    assert "Overfitting" in texts(judge(found)[1], "warning")
