"""Simulated sweeps: how often equal runs are called worse, and whether the winner's interval holds the truth.

`python -m benchmarks.coverage` draws more sweeps of more kinds, beside what was computed before. The bounds here are
those of the claim, and three standard errors of so few simulations.
"""

from math import sqrt

import numpy as np
import pytest

from benchmarks.coverage_sweeps import Setting, Tally, claim_after, claim_before, draw_sweep

NUM_SWEEPS = 200
MOST_FALSE = 0.05 + 3 * sqrt(0.05 * 0.95 / NUM_SWEEPS)
LEAST_COVERED = 0.95 - 3 * sqrt(0.05 * 0.95 / NUM_SWEEPS)


def simulated(setting: Setting, num_sweeps: int = NUM_SWEEPS) -> Tally:
    rng, tally = np.random.default_rng(0), Tally()
    for _ in range(num_sweeps):
        sweep = draw_sweep(setting, rng)
        tally.add(claim_after(sweep), sweep.truths)
    return tally


@pytest.mark.parametrize("num_prompts", [100, 30])
def test_a_run_of_a_sweep_of_equal_runs_is_seldom_called_worse(num_prompts: int) -> None:
    tally = simulated(Setting("equal", (0.8,) * 12, num_prompts=num_prompts))
    assert tally.false_worse / tally.num <= MOST_FALSE
    assert tally.covered / tally.num >= LEAST_COVERED
    assert abs(tally.bias) < 0.4 * tally.measured_bias


def test_a_run_that_is_much_worse_is_mostly_found() -> None:
    tally = simulated(Setting("one worse", (0.9,) * 11 + (0.7,)))
    assert tally.found / tally.num_far > 0.8
    assert tally.false_worse / tally.num <= MOST_FALSE


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_a_configuration_of_several_seeds_is_seldom_called_worse_than_its_equals(num_seeds: int) -> None:
    tally = simulated(Setting("seeds", (0.8,) * 6, num_seeds, 0.15))
    assert tally.false_worse / tally.num <= MOST_FALSE
    assert tally.covered / tally.num >= LEAST_COVERED


def test_the_winner_of_unequal_runs_is_not_promised_too_much() -> None:
    tally = simulated(Setting("unequal", tuple(0.70 + 0.01 * step for step in range(12))))
    assert tally.covered / tally.num >= LEAST_COVERED
    assert abs(tally.bias) < 0.4 * tally.measured_bias


def test_the_simulation_can_tell_for_what_was_computed_before_fails_it() -> None:
    rng, tally = np.random.default_rng(0), Tally()
    for _ in range(50):
        sweep = draw_sweep(Setting("equal", (0.8,) * 12), rng)
        tally.add(claim_before(sweep), sweep.truths)
    assert tally.false_worse / tally.num > 0.5
