"""Verdicts in both orders, win rates with their intervals, and what a judge is worth."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from prefopt.evaluation.asked import Asked
from prefopt.evaluation.judged import Judged, judge_contestants
from prefopt.evaluation.judges.judge import LabelledPair, Matchup, compare_scores
from prefopt.evaluation.judging import (
    READINGS,
    Verdicts,
    WinRate,
    cohens_kappa,
    judge_answers,
    standard_error,
    sum_up,
    try_judge,
    win_rate,
)
from prefopt.evaluation.statistics import Estimate, Prompts
from prefopt.process.errors import UserError


class Reader:
    """A judge that reads by a function, and writes down what it saw."""

    def __init__(self, verdict, *, sees_order=True, name="reader") -> None:
        self.name, self.sees_order, self.verdict = name, sees_order, verdict
        self.seen: list[Matchup] = []

    def read(self, matchups):
        self.seen += matchups
        return np.array([self.verdict(each) for each in matchups], dtype=float)

    def describe(self):
        return {"kind": "reader"}


def by_exclamations(matchup: Matchup) -> float:
    return float(np.sign(matchup.first.count("!") - matchup.second.count("!")))


def always_first(_: Matchup) -> float:
    return 1.0


def alone(num: int) -> Prompts:
    return Prompts.all_different(num)


def test_a_judge_that_sees_the_order_is_asked_in_both_and_one_that_does_not_only_once():
    for sees_order, num in ((True, 4), (False, 2)):
        judge = Reader(by_exclamations, sees_order=sees_order)
        verdicts = judge_answers(judge, ["p", "q"], ["a!", "b"], ["a", "b!!"])
        assert verdicts.outcomes.tolist() == [1, -1]
        assert len(judge.seen) == num
    assert [(each.first, each.second) for each in judge.seen] == [("a!", "a"), ("b", "b!!")]


def test_a_judge_that_always_prefers_the_first_answer_finds_only_ties():
    verdicts = judge_answers(Reader(always_first), ["p"] * 40, ["a"] * 40, ["b"] * 40)
    found = sum_up("tuned", "base", "reader", verdicts, alone(40))
    assert verdicts.outcomes.tolist() == [0] * 40
    assert (found.estimate.value, found.num_ties) == (0.5, 40)
    assert (found.consistency, found.first_slot) == (0.0, 1.0)
    assert found.gain.low < 0 < found.gain.high


def test_what_both_orders_say_in_words_is_what_counts():
    nan, values = float("nan"), (1, 0, -1, float("nan"))
    orders = [(a, b) for a in values for b in values]
    verdicts = Verdicts(*np.array(orders).T, np.zeros(16))
    counted = {"win": 1, "loss": -1, "tie": 0, "inconsistent under swap": 0, "no verdict": nan}
    np.testing.assert_array_equal([counted[word] for word in verdicts.readings], verdicts.outcomes)
    assert {*verdicts.readings} == {*READINGS}
    said = dict(zip(orders[:2], verdicts.readings, strict=False))
    assert said == {(1, 1): "win", (1, 0): "inconsistent under swap"}


def test_the_lines_of_answers_hold_each_verdict_in_both_orders():
    asked = [Asked("a:1", "p", "c", rejected="r"), Asked("a:2", "q", None)]
    answers = {"base": ["b", "b"], "tuned": ["t!", "t"]}
    verdicts = Verdicts(np.array([1.0, float("nan")]), np.array([-1.0, 1.0]), np.zeros(2))
    judged = Judged({}, [WinRate("tuned", "base", "j", Estimate(0.5))], [verdicts])
    first, second = judged.per_prompt(asked, answers)
    match = {"a": "tuned", "b": "base", "judge": "j"}
    says = {"outcome": 0, "forward": 1, "backward": -1, "reading": "inconsistent under swap"}
    assert first["outcomes"] == [{**match, **says}]
    assert (first["answers"], first["chosen"], first["rejected"]) == ({"base": "b", "tuned": "t!"}, "c", "r")
    unread = {"outcome": None, "forward": None, "backward": 1, "reading": "no verdict"}
    assert second["outcomes"] == [{**match, **unread}]


def test_the_order_of_the_contestants_turns_the_result_around():
    judge, prompts = Reader(by_exclamations), [str(n) for n in range(50)]
    a, b = ["!" * (n % 3) for n in range(50)], ["!" * (n % 2) for n in range(50)]
    there = sum_up("a", "b", "r", judge_answers(judge, prompts, a, b), alone(50))
    back = sum_up("b", "a", "r", judge_answers(judge, prompts, b, a), alone(50))
    assert back.estimate.value == pytest.approx(1 - there.estimate.value)
    assert (back.estimate.low, back.estimate.high) == pytest.approx((1 - there.estimate.high, 1 - there.estimate.low))
    assert back.num_ties == there.num_ties


def test_answers_without_a_verdict_count_nowhere_and_are_counted():
    verdicts = Verdicts(np.array([1.0, np.nan, 0, -1]), np.array([1.0, 1, 0, np.nan]), np.zeros(4))
    found = sum_up("a", "b", "r", verdicts, alone(4))
    assert (found.num_unread, found.num_ties, found.estimate.n) == (2, 1, 2)
    assert found.estimate.value == 0.75
    none = sum_up("a", "b", "r", Verdicts(np.array([np.nan]), np.array([np.nan]), np.zeros(1)), alone(1))
    assert np.isnan(none.estimate.value)
    assert none.num_unread == 1


def test_scores_give_verdicts_near_ones_tie_and_what_is_no_number_gives_none():
    first, second = np.array([1.0, 1.0, 0.5, np.nan]), np.array([0.0, 0.95, 2.0, 1.0])
    assert compare_scores(first, second, 0.1)[:3].tolist() == [1, 0, -1]
    assert np.isnan(compare_scores(first, second, 0.1)[3])


def test_kappa_without_ties_is_the_share_right_minus_the_share_wrong():
    pairs = [LabelledPair(str(n), "!" if n < 80 else "", "!" if n >= 80 else "") for n in range(100)]
    standing = try_judge(Reader(by_exclamations), pairs, alone(100))
    assert standing.agreement.value == pytest.approx(0.80)
    assert standing.kappa.value == pytest.approx(0.80 - 0.20)
    of_shares = [2 * each - 1 for each in (standing.agreement.low, standing.agreement.high)]
    assert (standing.kappa.low, standing.kappa.high) == pytest.approx(of_shares)
    assert standing.facts == {"kind": "reader"}


@pytest.mark.parametrize(("right", "wrong"), [(60, 10), (70, 20), (30, 30), (0, 5), (90, 0), (0, 0), (200, 0)])
def test_kappa_is_that_of_scikit_learn_on_both_orders_of_each_pair(right: int, wrong: int):
    outcomes = np.zeros(200)
    outcomes[:right], outcomes[right : right + wrong] = 1, -1
    labels = ["first", "second"] * 200
    told = [{1: own, 0: "tie", -1: other}[each] for each in outcomes for own, other in (labels[:2], labels[1::-1])]
    found = cohens_kappa(outcomes, alone(200))
    assert found.value == pytest.approx(cohen_kappa_score(labels, told))
    assert found.low < found.high


@pytest.mark.parametrize("num", [30, 132])
@pytest.mark.parametrize(("right", "tied"), [(0.3, 0.65), (0.7, 0.2), (0.5, 0.0), (0.85, 0.1), (0.2, 0.6)])
def test_intervals_of_kappa_hold_the_truth(right: float, tied: float, num: int):
    rng, truth = np.random.default_rng(8), (right - (1 - right - tied)) / (1 + tied)
    draws = rng.choice([1.0, 0.0, -1.0], p=[right, tied, 1 - right - tied], size=(2000, num))
    found = [cohens_kappa(each, alone(num)) for each in draws]
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.93


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.3, 0.4), (0.1, 0.85), (0.8, 0.1), (0.02, 0.96)])
def test_intervals_of_win_rates_hold_the_truth(win: float, tie: float):
    rng, truth, num = np.random.default_rng(7), win + tie / 2, 60
    draws = rng.choice([1.0, 0.0, -1.0], p=[win, tie, 1 - win - tie], size=(2000, num))
    found = [win_rate(each, alone(num)) for each in draws]
    held = np.mean([each.low <= truth <= each.high for each in found])
    assert held >= 0.935
    if win == 1 - win - tie:
        assert np.mean([each.low > 0.5 for each in found]) <= 0.03


def test_the_standard_error_is_that_of_the_sample():
    outcomes = np.array([1.0, -1, 0, 1])
    wins = (outcomes + 1) / 2
    assert standard_error(outcomes) == pytest.approx(wins.std(ddof=1) / 2)


def test_the_tuned_model_meets_all_others_and_all_others_meet_the_base():
    answers = {name: ["!" * n] * 3 for n, name in enumerate(("base", "prompted", "tuned"))}
    pairs = [LabelledPair("p", "!", "")] * 3
    found = judge_contestants([Reader(by_exclamations)], answers, ["p", "q", "r"], alone(3), pairs, alone(3))
    met = {(each.a, each.b): each.estimate.value for each in found.win_rates}
    assert met == {("tuned", "base"): 1.0, ("tuned", "prompted"): 1.0, ("prompted", "base"): 1.0}
    assert found.standings["reader"].kappa.value == 1.0
    assert judge_contestants([Reader(always_first)], answers, ["p"] * 3, alone(3), [], alone(0)).standings == {
        "reader": None
    }


def test_a_judge_that_fails_is_left_out_and_the_others_read_on():
    def fail(_):
        raise UserError("the server is down")

    answers = {"base": ["", ""], "tuned": ["!", "!"]}
    judges = [Reader(fail, name="down"), Reader(by_exclamations, name="up")]
    found = judge_contestants(judges, answers, ["p", "q"], alone(2), [LabelledPair("p", "!", "")], alone(1))
    assert found.failures == {"down": "the server is down"}
    assert found.standings["down"] is None
    assert [each.judge for each in found.win_rates] == ["up"]
