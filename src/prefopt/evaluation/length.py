"""What is left of a win when length is taken out of it, and how far a judge follows length."""

from collections.abc import Sequence
from math import nan, sqrt

import numpy as np

from prefopt.evaluation.statistics import Estimate, Floats, Prompts, t_quantile

FEWEST_ADJUSTED = 20
"""Judged prompts below which no win rate is adjusted for length: the regression has four coefficients."""
FEWEST_ON_A_SIDE = 10
"""Prompts on which the answer must be longer, and on which it must be shorter, to tell quality from length."""


def length_gaps(first: Sequence[str], second: Sequence[str]) -> Floats:
    """Returns the characters of each first answer minus those of the second, as a share of the longer."""
    gaps = [(len(a) - len(b)) / max(len(a), len(b), 1) for a, b in zip(first, second, strict=True)]
    return np.array(gaps, dtype=float)


def adjust_for_length(outcomes: Floats, gaps: Floats, prompts: Prompts) -> Estimate | None:
    """Returns the win rate at equal length by least squares on the difference in length; None where it cannot tell.

    It cannot where an answer is hardly ever the longer one, or hardly ever the shorter one: whatever follows from
    length alone, be it a rule as simple as "the longer wins", then looks like quality. Prompts on which both answers
    are equally long count for either side.

    The regressors are odd functions of the difference d, so that what turns round with d leaves the intercept alone:
    sign(d), by which a judge takes the longer answer however little it is longer; d; and d·|d|, by which it does not
    see small differences. The standard error of the intercept is White's HC3, with the rows of a prompt summed; as in
    `change_of_means`, imagined prompts, one won and one lost on each side, keep the interval from having no width.

    Args:
        outcomes: 1, 0 or -1, shape (prompts,).
        gaps: Relative differences in length, shape (prompts,).
        prompts: Of the outcomes.
    """
    num_longer, num_shorter = int((gaps > 0).sum()), int((gaps < 0).sum())
    num_equal = len(gaps) - num_longer - num_shorter
    is_one_sided = min(num_longer, num_shorter) + num_equal / 2 < FEWEST_ON_A_SIDE
    if prompts.num < FEWEST_ADJUSTED or is_one_sided:
        return None
    value = float((np.linalg.pinv(_design(gaps)) @ outcomes)[0])
    usual = float(np.median(np.abs(gaps)))
    all_gaps = np.concatenate([gaps, [usual, usual, -usual, -usual]])
    all_outcomes = np.concatenate([outcomes, [1.0, -1.0, 1.0, -1.0]])
    design = _design(all_gaps)
    inverse = np.linalg.pinv(design)  # singular where all differences are of one size
    leverage = np.einsum("ij,ji->i", design, inverse)
    coefficients = inverse @ all_outcomes
    scores = inverse[0] * (all_outcomes - design @ coefficients) / np.maximum(1 - leverage, 1e-9)
    of_prompts = np.concatenate([prompts.sums(scores[: len(gaps)]), scores[len(gaps) :]])
    reach = t_quantile(prompts.num - design.shape[1]) * sqrt(float((of_prompts**2).sum()))
    middle = float(coefficients[0])
    low, high = min(middle - reach, value), max(middle + reach, value)
    low, value, high = (min(max(0.5 + each / 2, 0.0), 1.0) for each in (low, value, high))
    return Estimate(value, low, high, len(outcomes), prompts.num)


def _design(gaps: Floats) -> Floats:
    return np.stack([np.ones(len(gaps)), np.sign(gaps), gaps, gaps * np.abs(gaps)], axis=1)


def length_coefficient(outcomes: Floats, gaps: Floats) -> float:
    """Returns the correlation of verdicts with the difference in length, in [-1, 1]; NaN if either is always zero.

    Each pair counts in both orders, so that both means are zero: a judge that always takes the longer answer follows
    length also where the longer one always comes first.

    Args:
        outcomes: 1, 0 or -1, shape (pairs,).
        gaps: Differences in length, shape (pairs,).
    """
    size = sqrt(float((outcomes**2).sum() * (gaps**2).sum()))
    return float((outcomes * gaps).sum()) / size if size > 0 else nan
