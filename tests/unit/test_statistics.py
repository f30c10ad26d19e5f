"""Intervals against closed forms and hand-derived numbers."""

import numpy as np
import pytest

from prefopt.data.intervals import wilson
from prefopt.evaluation.statistics import Bootstrap, detectable_shift, share, sign_test


def test_wilson_equals_the_worked_example():
    # p = 0.5, n = 100: centre 0.5, half width 1.96/(1 + 3.8415/100) * sqrt(0.0025 + 3.8415/40000) = 0.0962
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_wilson_stays_in_the_unit_interval_and_is_never_empty():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(0.8389, abs=1e-4)


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate = Bootstrap(4000, seed=1).mean(values)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_reproducible_and_follows_its_seed():
    values = np.arange(30.0)
    assert Bootstrap(500, seed=1).mean(values) == Bootstrap(500, seed=1).mean(values)
    assert Bootstrap(500, seed=1).mean(values) != Bootstrap(500, seed=2).mean(values)


def test_rows_of_one_prompt_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    clusters = np.repeat(np.arange(40), 10)
    bootstrap = Bootstrap(1000, seed=0)
    independent, clustered = bootstrap.mean(values), bootstrap.mean(values, clusters)
    assert clustered.value == pytest.approx(independent.value)
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)


def test_a_ratio_weighs_long_answers_by_their_tokens():
    estimate = Bootstrap(50, seed=0).ratio(np.array([10.0, 1.0]), np.array([100.0, 1.0]))
    assert estimate.value == pytest.approx(11 / 101)


def test_a_share_of_repeated_prompts_is_not_wilsons():
    hits = np.repeat([True, False], 50)
    clusters = np.repeat(np.arange(4), 25)
    assert share(hits, clusters).high > share(hits).high
    assert share(np.ones(40, bool), np.arange(40) // 2).low < share(np.ones(40, bool)).low < 1


def test_the_sign_test_is_quick_and_continuous_at_a_hundred_thousand_pairs():
    assert sign_test(50_300, 49_700) == pytest.approx(0.058, abs=2e-3)
    assert sign_test(1080, 920) == pytest.approx(sign_test(1081, 921), rel=0.05)


def test_sign_test_equals_the_binomial():
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(5, 5) == 1.0


def test_detectable_shift_equals_the_table_of_the_method():
    assert detectable_shift(200) == pytest.approx(0.099, abs=5e-4)
    assert detectable_shift(1000) == pytest.approx(0.0443, abs=5e-4)
