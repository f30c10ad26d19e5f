"""What is left of a win at equal length: nothing if a judge reads length alone, most if the answers are better."""

from collections.abc import Callable

import numpy as np
import pytest

from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.judging import Verdicts, WinRate, sum_up, try_judge
from prefopt.evaluation.length import adjust_for_length, length_coefficient
from prefopt.evaluation.statistics import Floats, Prompts

NUM, ROUNDS = 132, 300
Rule = Callable[[np.random.Generator, Floats], Floats]


def judged(outcomes: Floats, gaps: Floats) -> WinRate:
    return sum_up("tuned", "base", "judge", Verdicts(outcomes, outcomes, gaps), Prompts.all_different(len(gaps)))


def longer_wins(_: np.random.Generator, gaps: Floats) -> Floats:
    return np.sign(gaps)


def longer_wins_mostly(rng: np.random.Generator, gaps: Floats) -> Floats:
    return np.sign(gaps) * np.where(rng.random(len(gaps)) < 0.9, 1, -1)


def longer_wins_gradually(rng: np.random.Generator, gaps: Floats) -> Floats:
    return np.where(rng.random(len(gaps)) < 1 / (1 + np.exp(-8 * gaps)), 1.0, -1.0)


def far_longer_wins(_: np.random.Generator, gaps: Floats) -> Floats:
    return np.where(np.abs(gaps) > 0.15, np.sign(gaps), 0.0)


def quality_wins(rng: np.random.Generator, gaps: Floats) -> Floats:
    return np.where(rng.random(len(gaps)) < 0.75, 1.0, -1.0)


def even(rng: np.random.Generator, share_longer: float) -> Floats:
    """Gaps of 2 to 40 %, as large where the answer is shorter as where it is longer."""
    return np.where(rng.random(NUM) < share_longer, 1, -1) * rng.uniform(0.02, 0.4, NUM)


def uneven(rng: np.random.Generator, share_longer: float) -> Floats:
    """Where the answer is longer it is far longer, and where it is shorter it hardly is."""
    longer = rng.random(NUM) < share_longer
    return np.where(longer, rng.uniform(0.1, 0.6, NUM), -rng.uniform(0.02, 0.2, NUM))


def passes(rule: Rule, draw: Callable[[np.random.Generator, float], Floats], share_longer: float) -> float:
    """The share of simulated evaluations whose win is still shown at equal length."""
    rng, found = np.random.default_rng(5), 0
    for _ in range(ROUNDS):
        gaps = draw(rng, share_longer)
        rate = judged(rule(rng, gaps), gaps)
        found += rate.gain.low > 0 and rate.adjusted is not None and rate.adjusted.low > 0.5
    return found / ROUNDS


@pytest.mark.parametrize("share_longer", [0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("draw", [even, uneven])
@pytest.mark.parametrize("rule", [longer_wins, longer_wins_mostly, longer_wins_gradually, far_longer_wins])
def test_a_judge_that_reads_length_alone_gives_no_win_at_equal_length(
    rule: Rule, draw: Callable[[np.random.Generator, float], Floats], share_longer: float
) -> None:
    assert passes(rule, draw, share_longer) <= 0.05


@pytest.mark.parametrize(("draw", "least"), [(even, 0.98), (uneven, 0.9)])
def test_a_model_that_is_better_whatever_the_length_still_wins_at_equal_length(
    draw: Callable[[np.random.Generator, float], Floats], least: float
) -> None:
    assert passes(quality_wins, draw, 0.7) >= least


def test_answers_on_one_side_alone_leave_nothing_to_adjust_by() -> None:
    rng = np.random.default_rng(0)
    for gaps in (rng.uniform(0.1, 0.4, 60), np.full(60, -0.3), np.r_[np.full(51, 0.2), np.full(9, -0.2)]):
        assert judged(np.ones(60), gaps).adjusted is None
    assert adjust_for_length(np.ones(12), np.linspace(-1, 1, 12), Prompts.all_different(12)) is None
    told = judged(np.ones(60), np.r_[np.full(51, 0.2), np.full(9, -0.2)])
    assert (told.num_longer, told.num_shorter) == (51, 9)


def test_answers_of_equal_length_are_evidence_for_both_sides() -> None:
    rng = np.random.default_rng(2)
    found = adjust_for_length(quality_wins(rng, np.zeros(80)), np.zeros(80), Prompts.all_different(80))
    assert found is not None
    assert found.low > 0.5


def test_the_adjusted_win_rate_is_the_intercept_and_its_interval_has_a_width() -> None:
    rng = np.random.default_rng(1)
    gaps, outcomes = rng.normal(0, 0.3, 60), rng.choice([-1.0, 0, 1], size=60)
    found = adjust_for_length(outcomes, gaps, Prompts.all_different(60))
    design = np.stack([np.ones(60), np.sign(gaps), gaps, gaps * np.abs(gaps)], axis=1)
    assert found is not None
    assert found.value == pytest.approx(0.5 + np.linalg.lstsq(design, outcomes, rcond=None)[0][0] / 2)
    always = adjust_for_length(np.ones(60), gaps, Prompts.all_different(60))
    assert always is not None
    assert always.value == pytest.approx(1.0)
    assert 0.5 < always.low < 0.99


@pytest.mark.parametrize(("slope", "num"), [(0.0, 40), (1.0, 40), (1.0, 150)])
def test_intervals_adjusted_for_length_hold_the_truth(slope: float, num: int) -> None:
    rng, held = np.random.default_rng(3), []
    for _ in range(1000):
        gaps = rng.uniform(-0.5, 0.7, num)
        outcomes = np.where(rng.random(num) < np.clip(0.6 + slope * gaps / 2, 0, 1), 1.0, -1.0)
        found = adjust_for_length(outcomes, gaps, Prompts.all_different(num))
        held += [] if found is None else [found.low <= 0.6 <= found.high]
    assert np.mean(held) >= 0.94


def test_equal_prompts_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    gaps, outcomes = rng.normal(0, 0.3, 60), rng.choice([-1.0, 1], size=60)
    once = adjust_for_length(outcomes, gaps, Prompts.all_different(60))
    thrice = adjust_for_length(np.tile(outcomes, 3), np.tile(gaps, 3), Prompts.of(np.tile(np.arange(60), 3)))
    assert once is not None
    assert thrice is not None
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)


class ByLength:
    """A judge that takes the longer answer."""

    name, sees_order = "length", False

    def read(self, matchups):  # type: ignore[no-untyped-def]
        return np.array([np.sign(len(each.first) - len(each.second)) for each in matchups], float)

    def describe(self):  # type: ignore[no-untyped-def]
        return {}


def test_how_far_a_judge_follows_length_stands_beside_how_far_the_labels_do() -> None:
    rng = np.random.default_rng(6)
    pairs = [
        LabelledPair(str(row), "a" * first, "b" * second)
        for row, (first, second) in enumerate(rng.integers(5, 50, size=(80, 2)).tolist())
    ]
    found = try_judge(ByLength(), pairs, Prompts.all_different(80))
    both = [(1, len(p.chosen), len(p.rejected)) for p in pairs] + [(-1, len(p.rejected), len(p.chosen)) for p in pairs]
    gaps = [(a - b) / max(a, b) for _, a, b in both]
    assert found.length_coefficient == pytest.approx(np.corrcoef(np.sign(gaps), gaps)[0, 1])
    assert found.label_length_coefficient == pytest.approx(np.corrcoef([each[0] for each in both], gaps)[0, 1])
    assert found.length_coefficient > 0.8
    assert abs(found.label_length_coefficient) < 0.3
    assert length_coefficient(np.ones(3), np.array([0.1, 0.2, 0.3])) > 0.9
    assert np.isnan(length_coefficient(np.zeros(3), np.ones(3)))
