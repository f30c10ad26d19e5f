"""Estimates with their 95 % confidence intervals; every estimate in a report is computed here."""

from dataclasses import dataclass
from functools import cache
from math import atan, comb, cos, erfc, exp, lgamma, nan, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from prefopt.data.intervals import Z_95, wilson

Floats = NDArray[np.float64]

Z_80 = 0.8416212335729143
"""The 80 % quantile of the normal distribution, for a power of 80 %."""
EXACT_UP_TO = 2000
"""Most discordant pairs for which the sign test sums the binomial distribution."""
BLOCK = 200
"""Number of resamples drawn at once; bounds the memory of a bootstrap."""
NODES = 100
"""Nodes of Simpson's rule; enough because the integrand is smooth, and its range shrinks as it grows steep."""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and the number of examples behind it; an unknown bound is NaN."""

    value: float
    low: float = nan
    high: float = nan
    n: int | None = None

    def clipped(self, low: float, high: float) -> "Estimate":
        """Returns the estimate with its interval cut to [low, high]."""
        return Estimate(self.value, max(self.low, low), min(self.high, high), self.n)

    def to_dict(self) -> dict[str, object]:
        return {"value": self.value, "ci95": [self.low, self.high], "n": self.n}


@dataclass(frozen=True)
class Bootstrap:
    """Cluster bootstrap for intervals of means: all rows of one prompt are resampled together.

    Attributes:
        resamples: Number of resamples; the interval is their 2.5th to 97.5th percentile.
        seed: Makes the interval reproducible.
    """

    resamples: int
    seed: int

    def ratio(self, numerators: Floats, denominators: Floats, clusters: NDArray[np.int64] | None = None) -> Estimate:
        """Estimates sum(numerators) / sum(denominators), both of shape (examples,)."""
        n = len(numerators)
        assert n == len(denominators) > 0, "an estimate needs examples"
        groups = np.arange(n) if clusters is None else clusters
        tops, bottoms = np.bincount(groups, numerators), np.bincount(groups, denominators)
        rng = np.random.default_rng(self.seed)
        values = []
        for start in range(0, self.resamples, BLOCK):
            size = (min(BLOCK, self.resamples - start), len(tops))
            drawn = rng.integers(0, len(tops), size=size)
            values.append(tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1))
        low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
        return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high), n)

    def mean(self, values: Floats, clusters: NDArray[np.int64] | None = None) -> Estimate:
        """Estimates the mean of `values`, shape (examples,)."""
        return self.ratio(values, np.ones_like(values), clusters)


def share(hits: NDArray[np.bool_], clusters: NDArray[np.int64] | None = None) -> Estimate:
    """Estimates a proportion with Wilson's interval; all rows of one prompt count as one, which is conservative."""
    n = len(hits) if clusters is None else len(np.unique(clusters))
    low, high = wilson(float(hits.mean()) * n, n)
    return Estimate(float(hits.mean()), low, high, len(hits))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value for wins and losses being equally likely (McNemar's exact test on discordant pairs)."""
    n = wins + losses
    if n > EXACT_UP_TO:
        return erfc((abs(wins - losses) - 1) / sqrt(2 * n))  # normal approximation with continuity correction
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))


def detectable_shift(n: int) -> float:
    """Smallest shift from 50 % that n examples detect with 80 % power at the 5 % level (normal approximation)."""
    return (Z_95 + Z_80) * 0.5 / sqrt(n)


@cache
def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with `freedom` >= 1 degrees, to about 1e-8."""
    t = Z_95
    for _ in range(50):  # Newton's steps never overshoot: the distribution is concave to the right of 0
        within, slope = _t_within(t, freedom)
        step = (0.95 - within) / slope
        t += step
        if step < 1e-12:
            break
    return t


def _t_within(t: float, freedom: float) -> tuple[float, float]:
    """P(|T| <= t) and its slope in t: the integral of cos^(freedom-1) up to atan(t / sqrt(freedom)), normalised."""
    end = atan(t / sqrt(freedom))
    scale = 2 / sqrt(pi) * exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2))
    width = end / NODES
    weights = (1 if i in (0, NODES) else 4 if i % 2 else 2 for i in range(NODES + 1))
    total = sum(weight * cos(i * width) ** (freedom - 1) for i, weight in enumerate(weights))
    slope = cos(end) ** (freedom - 1) * sqrt(freedom) / (freedom + t**2)
    return scale * total * width / 3, scale * slope
