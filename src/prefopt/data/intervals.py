"""Confidence intervals that both the audit of data and the report on a model need."""

from math import sqrt

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for two-sided intervals of 95 %."""


def wilson(successes: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (Wilson 1927); of nothing, [0, 1].

    Args:
        successes: How many of `n`; no whole number where rows have weights.
        n: Independent trials; no whole number where they are the equivalent of rows that depend on each other.
        z: Standard errors on each side; `Z_95` makes it an interval of 95 %.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
