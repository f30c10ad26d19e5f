"""Judged answers decide: they have to win against all that one would do instead, by a judge that is worth it."""

from typing import Any

import pytest

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.findings import assess
from prefopt.evaluation.report import Report
from tests.unit.test_findings import entry, report, texts

CONTESTANTS = {
    "base": {"model": "m", "is_untuned": True},
    "tuned": {"model": "tuned", "is_untuned": False},
    "guide": {"model": "base", "system": "guide.md", "is_untuned": True, "is_prompted": True},
}


NOT_BETTER = {"base": 0.6, "guide": 0.1}


def win(b: str, value: float, low: float | None = None, **further: Any) -> dict[str, Any]:
    found = {"a": "tuned", "b": b, "judge": "rule", **entry(value, low, None if low is None else 2 * value - low)}
    at_equal_length = entry(value, low, None if low is None else 2 * value - low)
    told = {"ties": 10, "unread": 0, "consistency": 1.0, "first_slot": 0.5, "adjusted": at_equal_length}
    return {**found, **told, **further}


def standing(kappa: float, low: float | None = None, **further: Any) -> dict[str, Any]:
    return {
        "kappa": entry(kappa, low),
        "agreement": entry(0.5 + kappa / 2),
        "consistency": 1.0,
        "unread": 0,
        **further,
    }


def judged(*wins: dict[str, Any], judges: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return report(
        win_rates=list(wins),
        judges={"rule": standing(0.8)} if judges is None else judges,
        contestants=CONTESTANTS,
        **changes,
    )


def judge(found: dict[str, Any], **settings: Any) -> tuple[Decision, list[dict[str, Any]]]:
    decision, findings = assess(Report.from_dict(found), EvaluationConfig(**settings))
    return decision, [finding.to_dict() for finding in findings]


def test_a_model_whose_answers_win_against_the_base_and_the_base_with_a_prompt_ships() -> None:
    decision, findings = judge(judged(win("base", 0.8), win("guide", 0.7)))
    assert decision.word == "ship"
    assert decision.reasons == ("Its answers win against base and guide (judge: rule).",)
    assert decision.caveat.startswith("It does not prove that the answers are true")
    assert Decision.from_written(decision.to_dict()) == decision
    assert "Its answers win against guide." in texts(findings, "good")


def test_what_ship_does_not_prove_depends_on_the_judge() -> None:
    worth = {"rule": {**standing(0.8), "facts": {"kind": "rule"}}}
    decision, _ = judge(judged(win("base", 0.8), win("guide", 0.7), judges=worth))
    assert "make sense: the judge rule reads wording alone" in decision.caveat
    worth["rule"]["facts"] = {"kind": "endpoint"}
    decision, _ = judge(judged(win("base", 0.8), win("guide", 0.7), judges=worth))
    assert "or that people like them better: the judge rule agrees with the data on 90% of" in decision.caveat
    assert judge(judged(win("base", 0.8), win("guide", 0.5)))[0].caveat == ""


def test_a_win_against_the_base_alone_does_not_decide() -> None:
    decision, _ = judge(judged(win("base", 0.9)))
    assert decision.word == "undecided"
    assert "No base with a prompt competed" in decision.reasons[0]
    assert "{name: prompted, system: <file>}" in decision.would_decide[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "base"}, "base and guide (judge: rule)."),
        ({"model": "m"}, "base and guide (judge: rule)."),
        ({"model": "gpt", "endpoint": "http://h/v1"}, "base and guide (gpt behind an endpoint) (judge: rule)."),
        ({"model": "another"}, ""),
        ({"model": "gpt", "endpoint": "http://h/v1", "is_prompted": False}, ""),
    ],
)
def test_another_model_with_a_prompt_is_no_base_with_a_prompt(changes: dict[str, Any], sentence: str) -> None:
    found = judged(win("base", 0.9), win("guide", 0.9))
    decision, _ = judge({**found, "contestants": {**CONTESTANTS, "guide": {**CONTESTANTS["guide"], **changes}}})
    if sentence:
        assert (decision.word, decision.reasons) == ("ship", (f"Its answers win against {sentence}",))
    else:
        assert decision.word == "undecided"
        assert "No base with a prompt competed" in decision.reasons[0]


def test_the_best_of_the_untuned_decides() -> None:
    decision, _ = judge(judged(win("base", 0.9), win("guide", 0.52)))
    assert decision.word == "undecided"
    assert "the win rate over guide" in decision.reasons[0]
    decision, findings = judge(judged(win("base", 0.9), win("guide", 0.3)))
    assert decision == Decision("do_not_ship", ("Its answers lose to guide.",))
    assert "lose to guide" in texts(findings, "bad")


def test_a_win_within_the_least_gain_is_not_shown_and_says_how_many_prompts_would() -> None:
    decision, findings = judge(judged(win("base", 0.9), win("guide", 0.6, 0.52)))
    assert decision.word == "undecided"
    assert "though the win rate may be below 55 %" in texts(findings, "info")
    assert any("held-out prompts instead of 132, if guide loses as often" in each for each in decision.would_decide)
    assert judge(judged(win("base", 0.9), win("guide", 0.6, 0.52)), min_gain=0.01)[0].word == "ship"


def test_a_judge_that_cannot_tell_chosen_from_rejected_may_not_decide() -> None:
    for weak in (standing(0.05), standing(0.3, 0.15), standing(float("nan")), standing(-0.9)):
        decision, findings = judge(judged(win("base", 0.9), win("guide", 0.9), judges={"rule": weak}))
        assert decision.word == "undecided"
        assert "cannot tell chosen from rejected" in decision.reasons[0]
        assert "not shown to tell chosen from rejected" in texts(findings, "warning")
    few = {"rule": {**standing(0.9), "kappa": {**entry(0.9), "n": 12, "n_prompts": 12}}}
    assert "12 prompts are too few" in judge(judged(win("base", 0.9), win("guide", 0.9), judges=few))[0].reasons[0]
    unknown = judge(judged(win("base", 0.9), win("guide", 0.9), judges={"rule": None}))[0]
    assert "Nothing tells what the judge rule is worth" in unknown.reasons[0]


def test_the_first_judge_decides_and_another_one_that_disagrees_keeps_it_from_shipping() -> None:
    other = {**win("base", 0.2), "judge": "other"}
    judges = {"rule": standing(0.8), "other": standing(0.7)}
    decision, _ = judge(judged(win("base", 0.9), win("guide", 0.9), other, judges=judges))
    assert decision.word == "undecided"
    assert decision.reasons[0] == "The judges disagree: other finds the answers of base better."
    blind = {"rule": standing(0.8), "other": standing(0.0)}
    assert judge(judged(win("base", 0.9), win("guide", 0.9), other, judges=blind))[0].word == "ship"


def test_another_judge_may_object_to_a_win_against_any_untuned_contestant() -> None:
    wins = [win("base", 0.9), win("guide", 0.9), *({**win(b, v), "judge": "other"} for b, v in NOT_BETTER.items())]
    judges = {"rule": standing(0.8), "other": standing(0.7)}
    decision, _ = judge(judged(*wins, judges=judges))
    assert decision.word == "undecided"
    assert decision.reasons[0] == "The judges disagree: other finds the answers of guide better."


@pytest.mark.parametrize("unread", [0, 132])
def test_a_contestant_of_which_nothing_was_read_is_not_beaten(unread: int) -> None:
    nothing = {**entry(float("nan"), float("nan"), float("nan")), "n": 0, "n_prompts": 0}
    blank = {**win("guide", 0.5), **nothing, "unread": unread, "adjusted": None}
    decision, findings = judge(judged(win("base", 0.9), blank))
    assert decision.word == "undecided"
    assert decision.reasons[0] == "The judge rule gave no verdict on any answers of tuned and guide."
    assert "Nothing tells the win rate over guide." in decision.reasons
    assert "A judge that reads the answers." in decision.would_decide
    assert not any("of 0 prompts" in reason for reason in decision.reasons)
    assert "Not a finite number" not in texts(findings, "bad")


def test_a_judge_without_any_verdict_is_told_as_one_and_not_by_numbers() -> None:
    nothing = {**entry(float("nan"), float("nan"), float("nan")), "n": 0, "n_prompts": 0}
    silent = {**standing(0.0), "kappa": nothing, "agreement": nothing, "unread": 24}
    blank = {**win("base", 0.5), **nothing, "unread": 40, "ties": 0, "adjusted": None}
    told = {each["finding"]: each["evidence"] for each in judge(judged(blank, judges={"rule": silent}))[1]}
    said = "The judge rule gave no verdict on any held-out pair, so nothing tells what it is worth."
    assert told[said] == "24 of 24"
    assert told["The judge rule gave no verdict on any answers of tuned and base."] == "40 of 40"
    assert not any("Too few answers were judged" in each or "not shown to tell" in each for each in told)


def test_a_win_that_length_explains_does_not_ship() -> None:
    long = win("base", 0.9, adjusted=entry(0.52, 0.45, 0.59), matched=entry(0.5))
    decision, findings = judge(judged(long, win("guide", 0.9)))
    assert decision.word == "undecided"
    assert "Length may explain why its answers win against base" in texts(findings, "warning")
    assert judge(judged(win("base", 0.9, adjusted=entry(0.8)), win("guide", 0.9)))[0].word == "ship"


def test_a_win_of_answers_that_are_all_longer_does_not_ship() -> None:
    long = win("base", 1.0, adjusted=None, matched=None, longer=129, shorter=3)
    decision, findings = judge(judged(long, win("guide", 0.9)))
    assert decision.word == "undecided"
    assert decision.reasons[0].startswith("Length cannot be told from quality")
    assert any(each["evidence"] == "longer on 129 of 132 prompts, shorter on 3" for each in findings)
    lost = win("base", 0.3, adjusted=None, longer=129, shorter=3)
    assert "Length" not in texts(judge(judged(lost, win("guide", 0.9)))[1], "warning")


@pytest.mark.parametrize(
    ("of_judge", "of_labels", "is_told"),
    [(0.9, 0.2, True), (0.9, 0.7, False), (-0.6, 0.1, True), (0.1, 0.8, False), (0.4, -0.2, True), (0.3, None, False)],
)
def test_a_judge_that_follows_length_more_than_the_labels_is_told(
    of_judge: float, of_labels: float | None, is_told: bool
) -> None:
    followed = {"length_coefficient": of_judge, "label_length_coefficient": of_labels}
    judges = {"rule": standing(0.8, **followed)}
    decision, findings = judge(judged(win("base", 0.9), win("guide", 0.9), judges=judges))
    assert ("answer far more often than the data do" in texts(findings, "warning")) == is_told
    assert decision.word == "ship"


def test_answers_without_verdicts_and_a_bias_for_the_first_slot_are_said() -> None:
    decision, findings = judge(judged(win("base", 0.9, unread=60), win("guide", 0.9)))
    assert decision.word == "undecided"
    assert "gave no verdict on many answers" in texts(findings, "warning")
    biased = {"rule": {**standing(0.6), "consistency": 0.4, "first_slot": 0.9}}
    findings = judge(judged(win("base", 0.9), win("guide", 0.9), judges=biased))[1]
    assert "when the answers change places" in texts(findings, "warning")


@pytest.mark.parametrize("changes", [{"drift": {}}, {}])
def test_a_ruined_model_does_not_ship_whatever_it_wins(changes: dict[str, Any]) -> None:
    found = judged(win("base", 0.96), win("guide", 0.96))
    found["drift"]["perplexity"] = {"base": entry(2.8), "tuned": entry(182), "ratio": entry(65.0)}
    assert judge(found)[0].word == "do_not_ship"


def test_a_report_keeps_its_wins_and_judges_when_it_is_read_again() -> None:
    found = judged(win("base", 0.8, adjusted=entry(0.7)), win("guide", 0.7))
    read = Report.from_dict(found)
    again = Report.from_dict(read.to_dict())
    assert again.win_rates == read.win_rates
    assert again.judges == read.judges
    assert again.contestants == CONTESTANTS
    assert read.to_dict()["win_rates"][0]["n_prompts"] == 132
    assert Report.from_dict({**found, "win_rates": [1, {"a": "x"}], "judges": {"x": 3}}).win_rates is None


def test_a_judge_or_contestant_that_failed_keeps_a_model_from_shipping() -> None:
    found = judged(win("base", 0.9), win("guide", 0.8), failures={"panel": "the server is down"})
    decision, findings = judge(found)
    assert decision.word == "undecided"
    assert decision.reasons[0] == "panel failed, so it has no say."
    assert any(each["evidence"] == "the server is down" for each in findings)


def test_a_win_does_not_ship_where_drift_was_not_measured() -> None:
    wins = win("base", 0.8), win("guide", 0.7)
    assert judge(judged(*wins))[0].word == "ship"
    decision, _ = judge(judged(*wins, drift={}))
    assert decision.word == "undecided"
    assert decision.reasons[0] == "Drift was not measured, so a ruined model would not be seen here."
    assert "evaluation.contestants=[base,{name: tuned, model: <folder>}]" in decision.would_decide[0]


NAN = "The model gives no numbers: its logits are NaN or infinite, so it has no answers."


def test_a_tuned_model_without_numbers_does_not_ship_even_where_nothing_else_was_measured() -> None:
    found = judged(failures={"tuned": NAN}, without_numbers=["tuned"], drift={}, held_out={}, likelihood={})
    decision, findings = judge(found)
    assert decision.word == "do_not_ship"
    assert decision.reasons == ("The tuned model gives no numbers, so it has no answers.",)
    assert [each["evidence"] for each in findings if each["level"] == "bad" and each["harm"]] == [NAN]
    assert Report.from_dict(Report.from_dict(found).to_dict()).without_numbers == ["tuned"]


def test_a_tuned_model_that_failed_for_another_reason_is_not_called_broken() -> None:
    decision, findings = judge(judged(failures={"tuned": "the server is down"}))
    assert decision.word == "undecided"
    assert "tuned failed" in texts(findings, "warning")


@pytest.mark.parametrize("name", ["base", "guide"])
def test_another_contestant_without_numbers_holds_a_ship_back_and_is_named(name: str) -> None:
    failed = {"failures": {name: NAN}, "without_numbers": [name]}
    decision, _ = judge(judged(win("base", 0.8), win("guide", 0.7), **failed))
    assert decision.word == "undecided"
    assert name in decision.reasons[0]


def test_where_num_judged_ended_the_number_of_answers_it_is_what_is_to_be_raised() -> None:
    close = judged(win("base", 0.8), win("guide", 0.6, 0.52))
    (wanted,) = (each for each in judge(close, num_judged=132)[0].would_decide if "instead of 132" in each)
    needed = wanted.split()[3].replace(",", "")
    assert f"evaluation.num_judged={needed}, and as many in data.held_out" in wanted
    (wanted,) = (each for each in judge(close, num_judged=512)[0].would_decide if "instead of 132" in each)
    assert "more prompts in data.held_out" in wanted
