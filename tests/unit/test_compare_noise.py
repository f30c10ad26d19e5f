"""Differences to the first row, and what its number is worth: intervals that hold for a whole ranking."""

import random
import statistics
from array import array
from typing import Any

import numpy as np
import pytest

from prefopt.comparison.groups import Group
from prefopt.comparison.noise import Compared, Method, compare_with_first, fold
from prefopt.comparison.ranking import rank
from prefopt.comparison.records import Measure, Outcomes, RunRecord
from prefopt.comparison.simultaneous import Errors, Values, find_limits, seed_luck, shrink
from prefopt.data.intervals import Z_95
from prefopt.evaluation.metrics import BY_KEY, Metric
from prefopt.evaluation.statistics import Estimate, Prompts, change_of_share, t_quantile
from tests.unit.test_compare_statistics import record

ACCURACY, MARGIN = BY_KEY["preference_accuracy"], BY_KEY["mean_margin"]


def single(name: str, *, n: int = 132, **fields: Any) -> Group:
    return Group((record(name, n=n, **fields),), 1)


def group(*accuracies: float, **fields: Any) -> Group:
    return Group(tuple(record(f"r{i}", accuracy, **fields) for i, accuracy in enumerate(accuracies)), len(accuracies))


def with_outcomes(
    name: str, margins: list[float], *, pairs: str = "same", prompts: list[int] | None = None, seed: int = 0
) -> RunRecord:
    accuracy = statistics.fmean(margin > 0 for margin in margins)
    numbers = array("q", prompts or range(len(margins)))
    outcomes = Outcomes(pairs, {"tuned_margin": array("d", margins)}, numbers)
    metrics = {"mean_margin": Measure(statistics.fmean(margins), -9.0, 9.0, len(margins))}
    return record(name, accuracy, n=len(margins), outcomes=outcomes, metrics=metrics, settings={"run.seed": seed})


def judged(*groups: Group, metric: Metric = ACCURACY) -> Compared:
    return compare_with_first(groups, metric, [True] * len(groups))


def test_a_comparison_of_two_runs_is_that_of_a_report_on_base_and_tuned() -> None:
    chance = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 2)
    first, second = (chance.normal(0.5, 1, 120) for _ in range(2))
    runs = [with_outcomes(name, list(each), prompts=list(prompts)) for name, each in (("a", first), ("b", second))]
    found = judged(*(Group((run,), 1) for run in runs)).differences[1]
    expected = change_of_share(first > 0, second > 0, Prompts.of(prompts)).estimate
    assert found.method is Method.paired
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_runs_that_agree_on_every_pair_do_not_make_equality_certain() -> None:
    margins = [1.0] * 50
    found = judged(*(Group((with_outcomes(name, margins),), 1) for name in "abc")).differences[2]
    assert found.value == 0
    assert found.low < -0.02
    assert found.high > 0.02


def test_pairs_of_one_prompt_count_as_less_than_pairs_of_many() -> None:
    better, worse = [1.0] * 100, [1.0] * 88 + [-1.0] * 12
    alone = [Group((with_outcomes(name, each),), 1) for name, each in (("a", better), ("b", worse))]
    by_ten = [number // 10 for number in range(100)]
    alike = [Group((with_outcomes(n, each, prompts=by_ten),), 1) for n, each in (("a", better), ("b", worse))]
    assert not judged(*alone).differences[1].is_noise
    assert judged(*alike).differences[1].is_noise


def test_the_more_rows_the_wider_the_interval_of_each() -> None:
    chance = random.Random(2)
    hard = [chance.gauss(0, 1) for _ in range(100)]
    runs = [with_outcomes(f"{i}", [chance.gauss(1, 1) - each for each in hard]) for i in range(40)]
    groups = [Group((run,), 1) for run in runs]
    few, many = judged(*groups[:3]).differences[1], judged(*groups).differences[1]
    assert few.value == many.value
    assert many.high - many.low > 1.2 * (few.high - few.low)


def test_other_pairs_are_compared_by_both_intervals() -> None:
    # Newcombe's example (1998, table II a): 56/70 against 48/80, difference 0.2, 95 % interval 0.0524 to 0.3339.
    groups = single("b", accuracy=48 / 80, n=80), single("a", accuracy=56 / 70, n=70)
    found = judged(*groups).differences[1]
    assert found.method is Method.unpaired
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    runs = [with_outcomes(name, [1.0, -1.0] * 30, pairs=name) for name in "ab"]
    assert judged(*(Group((run,), 1) for run in runs)).differences[1].method is Method.unpaired


def test_pair_by_pair_shows_what_two_intervals_cannot() -> None:
    margins = [1.0] * 120 + [-1.0] * 12, [1.0] * 110 + [-1.0] * 22
    runs = [with_outcomes(name, each) for name, each in zip("ab", margins, strict=True)]
    blind = [single(run.name, accuracy=run.metrics["preference_accuracy"].value) for run in runs]
    assert judged(*blind).differences[1].is_noise
    assert not judged(*(Group((run,), 1) for run in runs)).differences[1].is_noise


def test_margins_are_compared_by_their_differences_from_twenty_prompts_on() -> None:
    chance = random.Random(1)
    hard = [chance.gauss(0, 5) for _ in range(200)]
    margins = [value + 0.1 for value in hard], [value + chance.gauss(0, 0.1) for value in hard]
    groups = [Group((with_outcomes(name, each),), 1) for name, each in zip("ab", margins, strict=True)]
    found = judged(*groups, metric=MARGIN).differences[1]
    changes = [b - a for a, b in zip(*margins, strict=True)]
    half = t_quantile(199) * statistics.stdev(changes) / 200**0.5
    assert found.value == pytest.approx(statistics.fmean(changes))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-6)
    few = [Group((with_outcomes(name, each[:19]),), 1) for name, each in zip("ab", margins, strict=True)]
    assert judged(*few, metric=MARGIN).differences == [None, None]


def test_the_spread_of_seeds_is_pooled_and_a_larger_one_is_a_rows_own() -> None:
    close, far, alone = (Values(np.array(seeds)) for seeds in ((0.5, 0.5, 0.5), (0.1, 0.5, 0.9), (0.5,)))
    luck = seed_luck([close, far, alone])
    assert luck.variances == pytest.approx([0.08, 0.16, 0.08])
    assert luck.freedom == 4
    assert seed_luck([alone, alone]).variances == pytest.approx([0, 0])


def test_seeds_without_intervals_are_compared_by_their_spread_with_students_t() -> None:
    groups = [
        Group(tuple(record(f"{i}", None, metrics={"loss": Measure(value)}) for i, value in enumerate(values)), 3)
        for values in ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5))
    ]
    found = judged(*groups, metric=BY_KEY["loss"])
    half = t_quantile(4) * 0.1 * (2 / 3) ** 0.5
    assert found.has_seed_luck
    difference = found.differences[1]
    assert difference.method is Method.seeds
    assert difference.value == pytest.approx(0.3)
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.06)  # 2,000 draws


def test_a_single_run_borrows_the_spread_of_others_seeds() -> None:
    steady = judged(single("a", accuracy=0.92), single("b", accuracy=0.80)).differences[1]
    moved = judged(single("a", accuracy=0.92), single("b", accuracy=0.80), group(0.5, 0.9)).differences[1]
    assert not steady.is_noise
    assert moved.is_noise


def test_seeds_that_agree_to_the_last_pair_do_not_make_a_difference_certain() -> None:
    assert judged(group(0.95, 0.95), group(0.94, 0.94)).differences[1].is_noise


def test_a_difference_without_any_uncertainty_is_not_judged() -> None:
    bare = [single(name, accuracy=None, metrics={"loss": Measure(value)}) for name, value in (("a", 0.9), ("b", 1.5))]
    found = judged(*bare, metric=BY_KEY["loss"])
    assert found.differences == [None, None]
    assert found.winner is None


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((-3.0, -1.0), (1.0, 3.0)), ((-3.0, 1.0), (0.0, 3.0)), ((1.0, 3.0), (1.0, 3.0)), ((-1.0, 3.0), (0.0, 3.0))],
)
def test_a_distance_from_zero_has_an_interval_that_is_folded_there(
    ends: tuple[float, float], expected: tuple[float, float]
) -> None:
    found = fold(Estimate(sum(ends) / 2, *ends))
    assert (found.value, found.low, found.high) == (abs(sum(ends) / 2), *expected)


def test_where_nearer_to_zero_is_better_distances_from_zero_are_compared() -> None:
    gap = BY_KEY["overfitting_gap"]

    def run(name: str, value: float) -> Group:
        return single(name, accuracy=None, metrics={"overfitting_gap": Measure(value, value - 0.06, value + 0.06, 99)})

    rows = rank([run("a", 2.1), run("b", -2.0), run("c", -2.1), run("d", -2.5), run("e", 2.5)], gap).rows
    assert [row.group.name for row in rows] == ["b", "a", "c", "d", "e"]
    assert [row.verdict for row in rows] == ["best", "within noise of #1", "within noise of #1", "worse", "worse"]
    assert [row.difference.value for row in rows[1:]] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert all(row.difference.low > 0 for row in rows[3:])


def test_two_rows_need_no_correction_and_the_level_of_many_is_that_of_the_largest_of_them() -> None:
    def errors(num: int) -> Errors:
        return Errors(np.zeros((num, 0)), np.ones(num), np.zeros(num), 0)

    assert find_limits(errors(2), np.ones(2, bool)).difference == Z_95
    many = find_limits(errors(10), np.ones(10, bool))
    assert many.difference == pytest.approx(4.474 / 2**0.5, abs=0.06)  # the studentised range of 10, tables
    assert many.value == pytest.approx(2.80, abs=0.06)  # 0.95 = (2 * Phi(z) - 1)^10


def test_errors_that_all_runs_share_cancel() -> None:
    shared = np.ones((20, 1))
    errors = Errors(shared, np.full(20, 1e-3), np.zeros(20), 0)
    found = find_limits(errors, np.ones(20, bool))
    assert found.value == pytest.approx(Z_95, abs=0.1), "as of one run"
    assert found.difference > 3, "what they do not share decides who is first"


def test_a_row_that_may_not_win_is_never_chosen() -> None:
    errors = Errors(np.zeros((10, 0)), np.ones(10), np.zeros(10), 0)
    given = find_limits(errors, np.arange(10) == 0).difference
    assert given == pytest.approx(2.42, abs=0.08)  # Dunnett (1955), one-sided, nine against a given one
    assert find_limits(errors, np.ones(10, bool)).difference > given + 0.5


def test_values_that_only_chance_spreads_are_shrunk_to_their_mean_and_distinct_ones_stay() -> None:
    chance = np.random.default_rng(4)
    errors = Errors(np.zeros((50, 0)), np.ones(50), np.zeros(50), 0)
    equal = np.sort(chance.normal(0, 1, 50))[::-1]
    assert abs(shrink(equal, errors)) < 0.8
    distinct = equal + 30 * np.arange(50)[::-1]
    assert shrink(distinct, errors) == pytest.approx(distinct[0], abs=0.3)


def test_the_winner_says_how_many_it_was_chosen_from_and_its_interval_holds_the_likelier_value() -> None:
    chance = random.Random(5)
    hard = [chance.gauss(0, 1) for _ in range(120)]
    runs = [with_outcomes(f"{i}", [chance.gauss(1, 1) - each for each in hard]) for i in range(30)]
    groups = sorted((Group((run,), 1) for run in runs), key=lambda each: -each.spread(ACCURACY).mean)
    winner = judged(*groups).winner
    assert winner.num == 30
    assert winner.value == groups[0].spread(ACCURACY).mean
    assert winner.low <= winner.likely < winner.value <= winner.high
    assert winner.value - winner.low > winner.high - winner.value, "the lucky side is the upper one"
    assert judged(groups[0]).winner is None


def test_no_share_is_said_to_be_above_all_of_it() -> None:
    for groups in ([group(0.99, 1.0, 0.98), group(0.9, 0.6, 1.0)], [single("a", accuracy=1.0), single("b")]):
        found = judged(*groups)
        assert 0 <= found.winner.low < found.winner.high <= 1
        assert -1 <= found.differences[1].low < found.differences[1].high <= 1


def test_of_a_loss_the_lucky_side_is_the_lower_one() -> None:
    losses = [
        single(f"{i}", accuracy=None, metrics={"loss": Measure(v, v - 0.1, v + 0.1)})
        for i, v in enumerate((1.9, 2.0, 2.05, 2.1))
    ]
    winner = judged(*losses, metric=BY_KEY["loss"]).winner
    assert winner.value < winner.likely
    assert winner.high - winner.value > winner.value - winner.low
