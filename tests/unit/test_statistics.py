"""Intervals against closed forms, hand-derived numbers and small simulations."""

from math import inf, nan

import numpy as np
import pytest

from prefopt.data.intervals import Z_95, wilson
from prefopt.evaluation.statistics import (
    FEWEST_PROMPTS,
    Bootstrap,
    Estimate,
    Prompts,
    change_of_share,
    difference,
    share,
    t_quantile,
    widen,
    z_among,
)


def prompts_of(*sizes: int) -> Prompts:
    return Prompts(np.repeat(np.arange(len(sizes)), sizes))


def test_prompts_are_numbered_by_their_texts() -> None:
    assert Prompts.of_texts(["b", "a", "b\0", "b", ""]).numbers.tolist() == [0, 1, 2, 0, 3]
    assert len(Prompts.of_texts([])) == 0


def test_spellings_of_a_prompt_are_one_prompt():
    """Five prompts in eight spellings each once passed for 40 independent ones."""
    spellings = ["Where is it?", "where is it", "Where  is it!", '"WHERE IS IT"', "Where is it?\n"]
    others = ["Where is it now?", "3+4?", "3-4?", "?", "!"]
    assert Prompts.of_texts([*spellings, *others]).numbers.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]


def test_wilson_equals_the_worked_example() -> None:
    # p = 0.5, n = 100: centre 0.5, half width 1.96/(1 + 3.8415/100) * sqrt(0.0025 + 3.8415/40000) = 0.0962
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_wilson_stays_in_the_unit_interval_and_is_never_empty() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(0.8389, abs=1e-4)


def test_quantiles_of_student_are_those_of_the_tables() -> None:
    assert [t_quantile(n) for n in (1, 4, 29)] == pytest.approx([12.706, 2.776, 2.045], abs=1e-3)
    assert t_quantile(1e9) == pytest.approx(Z_95, abs=1e-6)


def test_an_interval_among_several_is_as_much_wider_as_the_normal_ones_table_says() -> None:
    assert [z_among(num) for num in (0, 1, 2, 5, 10)] == pytest.approx([1.96, 1.96, 2.241, 2.576, 2.807], abs=1e-3)
    found = Estimate(0.3, 0.1, 0.4, 50, 40)
    assert widen(found, 1) == found
    wide = widen(found, 5)
    assert (wide.value, wide.n, wide.num_prompts) == (0.3, 50, 40)
    assert (wide.low, wide.high) == (pytest.approx(0.0371, abs=1e-3), pytest.approx(0.4314, abs=1e-3))
    assert not widen(Estimate(0.3, n=5), 3).has_interval


def test_the_likeness_of_pairs_is_the_intraclass_correlation() -> None:
    rng = np.random.default_rng(0)
    prompts = prompts_of(*[4] * 4000)
    shared, own = rng.normal(size=4000)[prompts.numbers], rng.normal(size=16000)
    for truth in (0.0, 0.3, 0.8):
        values = np.sqrt(truth) * shared + np.sqrt(1 - truth) * own
        assert prompts.likeness(values) == pytest.approx(truth, abs=0.03)


def test_pairs_that_agree_within_prompts_count_as_one_prompt_each() -> None:
    prompts = prompts_of(*[5] * 40)
    together = np.arange(40)[prompts.numbers] % 2
    apart = np.arange(200) % 2
    assert prompts.effective_n(together) == pytest.approx(40)
    assert prompts.effective_n(apart) > 190


def test_nothing_changed_is_not_told_apart_where_only_large_prompts_disagree() -> None:
    """Fifteen prompts of 20 pairs on which both models disagree, beside 285 of one pair on which they hardly do."""
    rng = np.random.default_rng(0)
    prompts = prompts_of(*[20] * 15, *[1] * 285)
    chance = np.where(prompts.sizes > 1, 0.3, 0.02)[prompts.numbers]
    told = []
    for _ in range(400):
        luck = np.where(rng.random(585) < np.sqrt(0.5), rng.random(300)[prompts.numbers], rng.random(585))
        changes = np.where(luck < chance / 2, 1, np.where(luck < chance, -1, 0))
        told.append(change_of_share(changes < 0, changes > 0, prompts).p_value < 0.05)
    assert np.mean(told) < 0.08


def test_a_share_holds_the_truth_where_large_prompts_are_harder() -> None:
    rng = np.random.default_rng(1)
    truth, held = (0.1 * 10 * 0.3 + 0.9 * 0.95) / (0.1 * 10 + 0.9), []
    for _ in range(300):
        is_large = rng.random(300) < 0.1
        prompts = prompts_of(*np.where(is_large, 10, 1))
        estimate = share(rng.random(len(prompts)) < np.where(is_large, 0.3, 0.95)[prompts.numbers], prompts)
        held.append(estimate.low <= truth <= estimate.high)
    assert np.mean(held) > 0.91


def test_a_prompt_with_most_pairs_leaves_few_independent_ones() -> None:
    prompts = prompts_of(40, *[1] * 20)
    assert prompts.size_seen == pytest.approx((1600 + 20) / 60)
    assert prompts.effective_num == pytest.approx(60 * 60 / 1620)
    assert prompts.freedom(1.0) == pytest.approx(1620**2 / (40**4 + 20))
    assert prompts.freedom(0.0) == pytest.approx(60**2 / (40**2 + 20))


def test_a_share_of_different_prompts_is_wilsons_but_for_students_quantile() -> None:
    hits = np.arange(100) < 50
    estimate = share(hits)
    assert (estimate.low, estimate.high) == wilson(50, 100, t_quantile(200))
    assert (estimate.n, estimate.num_prompts) == (100, 100)


def test_a_share_of_none_has_an_interval() -> None:
    estimate = share(np.zeros(32, bool))
    assert estimate.low == 0
    assert 0.09 < estimate.high < 0.13


def test_one_prompt_with_many_pairs_tells_next_to_nothing() -> None:
    estimate = share(np.ones(40, bool), prompts_of(40))
    assert estimate.low < 0.25
    change = change_of_share(np.zeros(40, bool), np.ones(40, bool), prompts_of(40))
    assert change.estimate.low < 0 < change.estimate.value == 1
    assert change.p_value > 0.05


def test_a_change_is_bonetts_and_prices_interval() -> None:
    # 10 wins and 2 losses of 50: (11 - 3) / 52 = 0.1538, error sqrt((14 - 64 / 52) / 52^2) = 0.0687
    first = np.repeat([False, True, True], [10, 2, 38])
    second = np.repeat([True, False, True], [10, 2, 38])
    change = change_of_share(first, second)
    assert change.estimate.value == pytest.approx(8 / 50)
    assert change.estimate.low == pytest.approx(8 / 52 - Z_95 * 0.06871, abs=1e-4)
    assert change.estimate.high == pytest.approx(8 / 52 + Z_95 * 0.06871, abs=1e-4)
    assert change.discordant == pytest.approx(12 / 50)


@pytest.mark.parametrize("seed", range(40))
def test_the_p_value_never_contradicts_the_interval_and_is_at_most_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = prompts_of(*rng.integers(1, 6, rng.integers(1, 1500)))
    first, second = rng.random((2, len(prompts))) < rng.random((2, 1))
    change = change_of_share(first, second, prompts)
    holds_zero = change.estimate.low <= 0 <= change.estimate.high
    assert 0 <= change.p_value <= 1
    assert holds_zero == (change.p_value >= 0.05)
    equal = change_of_share(first, first, prompts)
    assert (equal.p_value, equal.estimate.value) == (1.0, 0.0)
    assert equal.estimate.low < 0 < equal.estimate.high


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate = Bootstrap(4000, seed=1).mean(values)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_reproducible_and_follows_its_seed() -> None:
    values = np.arange(30.0)
    assert Bootstrap(500, seed=1).mean(values) == Bootstrap(500, seed=1).mean(values)
    assert Bootstrap(500, seed=1).mean(values) != Bootstrap(500, seed=2).mean(values)


def test_rows_of_one_prompt_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    bootstrap = Bootstrap(1000, seed=0)
    independent, clustered = bootstrap.mean(values), bootstrap.mean(values, prompts_of(*[10] * 40))
    assert clustered.value == pytest.approx(independent.value)
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)


def test_the_studentised_interval_of_a_ratio_holds_the_truth_where_percentiles_miss_it() -> None:
    """Skewed ratios of 40 prompts, as KL per token is; the table of `benchmarks.coverage` has more."""
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(300):
        bottoms = rng.lognormal(3, 0.6, 40)
        tops = bottoms * rng.lognormal(-0.18, 0.6, 40)
        estimate = Bootstrap(400, seed).ratio(tops, bottoms)
        held += estimate.low <= 1 <= estimate.high
    assert held / 300 >= 0.9


def test_a_ratio_weighs_long_answers_by_their_tokens() -> None:
    estimate = Bootstrap(50, seed=0).ratio(np.array([10.0, 1.0]), np.array([100.0, 1.0]))
    assert estimate.value == pytest.approx(11 / 101)


@pytest.mark.parametrize(
    ("values", "prompts"),
    [
        (np.arange(19.0), None),
        (np.arange(60.0), prompts_of(41, *[1] * 19)),
        (np.array([nan, *range(30)]), None),
        (np.array([inf, *range(30)]), None),
        (np.full(30, 7.0), None),
        (np.array([1.0, *[0.0] * 31]), None),
    ],
    ids=["19 prompts", "one giant prompt", "NaN", "infinite", "all alike", "one that differs"],
)
def test_there_is_no_interval_where_resampling_cannot_tell(values: np.ndarray, prompts: Prompts | None) -> None:
    with np.errstate(invalid="ignore"):
        estimate = Bootstrap(200, seed=0).mean(values, prompts)
    assert not estimate.has_interval
    assert Bootstrap(200, seed=0).mean(np.arange(float(FEWEST_PROMPTS))).has_interval


def test_a_difference_of_independent_shares_is_newcombes() -> None:
    # Newcombe 1998, table II, example (a), method 10: 56/70 - 48/80 = 0.2 with 0.0524 to 0.3339
    a, b = (Estimate(k / n, *wilson(k, n), n) for k, n in ((56, 70), (48, 80)))
    found = difference(a, b)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_prompts_are_numbered_without_gaps_after_a_choice() -> None:
    prompts = Prompts.of(["b", "a", "b", "c"])
    assert prompts.numbers.tolist() == [1, 0, 1, 2]
    assert prompts.select(np.array([0, 2, 3])).numbers.tolist() == [0, 0, 1]
    assert prompts.sums(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [2.0, 4.0, 4.0]
