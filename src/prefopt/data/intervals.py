"""Confidence intervals that both the audit of data and the report on a model need."""

from math import sqrt

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for two-sided intervals of 95 %."""


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Returns Wilson's 95 % score interval of a proportion (Wilson 1927); of nothing, [0, 1].

    Args:
        successes: How many of `n`; no whole number where rows have weights.
        n: Independent trials; no whole number where they are the equivalent of rows that depend on each other.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
