"""Estimates in findings: a number with its interval, or words where there is none."""

from math import inf, nan

import pytest

from prefopt.evaluation.in_words import (
    CHANGE,
    KAPPA,
    PERCENT,
    POINTS,
    SCORE,
    Form,
    list_names,
    tell,
    tell_n,
    tell_value,
)
from prefopt.evaluation.statistics import Estimate


@pytest.mark.parametrize(
    ("found", "form", "told"),
    [
        (Estimate(0.78, 0.701, 0.842, 132), PERCENT, "78.0 % [70.1, 84.2]"),
        (Estimate(-0.0001, -0.04, 0.03, 132), POINTS, "+0.0 points [-4.0, +3.0]"),
        (Estimate(1.0, 0.2, 1.0, 5), KAPPA, "1.00 [0.20, 1.00]"),
        (Estimate(0.667, n=6), CHANGE, "+0.667 [no interval]"),
        (Estimate(0.5, 0.4, inf, 6), PERCENT, "50.0 % [no interval]"),
        (Estimate(nan, nan, nan, 0), PERCENT, "not measured"),
        (Estimate(nan, nan, nan, 24), PERCENT, "not finite"),
        (Estimate(-inf, n=60), SCORE, "not finite"),
        (Estimate(inf), CHANGE, "not finite"),
    ],
)
def test_an_estimate_is_told_with_its_interval_or_in_words(found: Estimate, form: Form, told: str) -> None:
    assert tell(found, form) == told
    assert tell_value(found, form) == told.partition(" [")[0]


@pytest.mark.parametrize(
    ("num", "prompts", "told"),
    [(132, None, "n = 132"), (132, 132, "n = 132"), (132, 66, "n = 132 of 66 prompts"), (30, 1, "n = 30 of 1 prompt")],
)
def test_the_prompts_are_told_where_they_are_fewer_than_the_examples(num: int, prompts: int | None, told: str) -> None:
    assert tell_n(Estimate(0.5, n=num, num_prompts=prompts)) == told


@pytest.mark.parametrize(
    ("names", "told"), [(["base"], "base"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_listed_as_in_a_sentence(names: list[str], told: str) -> None:
    assert list_names(names) == told
