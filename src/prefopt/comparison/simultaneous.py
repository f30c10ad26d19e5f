"""Intervals that hold for a whole ranking at once, although its first row was chosen by the same numbers.

Two kinds of chance move a measured value: which prompts are held out, and the seed of the training. Prompts are shared
by all runs that were measured on the same pairs; seeds are each run's own. `Errors` holds both, for all groups of a
ranking together, and `find_limits` imitates the ranking: it draws the errors of groups that are equally good, chooses
the best of them as a ranking would, and looks how far it lies from the others. What happens in more than 19 of 20 such
rankings is taken for chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from prefopt.data.intervals import Z_95
from prefopt.evaluation.statistics import Floats, Prompts, t_quantile

DRAWS, BLOCK = 2000, 250
"""Number of imitated rankings, and how many are drawn at once: this bounds the memory."""
SEED = 0
"""Makes a comparison reproducible."""
LEVEL = 0.95
TINY = 1e-12
"""Standard error below which two groups are the same: they then do not differ in any draw either."""


@dataclass(frozen=True)
class Values:
    """A metric of a group of runs that differ in their seed only.

    Attributes:
        seeds: The metric by seed, shape (seeds,).
        below: Distance from the value to the lower end of the runs' own 95 % intervals; NaN if they have none.
        above: Distance to the upper end.
        outcomes: The metric of each held-out pair, shape (seeds, pairs), if the pairs are those of the ranking.
        may_win: Whether the group may be the first of the ranking.
    """

    seeds: Floats
    below: float = nan
    above: float = nan
    outcomes: Floats | None = None
    may_win: bool = True

    @property
    def mean(self) -> float:
        return float(self.seeds.mean())

    @property
    def has_interval(self) -> bool:
        """Whether the runs have intervals of their own."""
        return isfinite(self.below) and isfinite(self.above)

    @property
    def is_known(self) -> bool:
        """Whether it is known how far the choice of the held-out data may move the values."""
        return self.outcomes is not None or self.has_interval


@dataclass(frozen=True)
class SeedLuck:
    """What another seed would change.

    Attributes:
        variances: Variance between seeds of each group, shape (groups,).
        freedom: Degrees of freedom behind them; 0 if no group has several seeds, and `variances` are 0 then.
    """

    variances: Floats
    freedom: int


@dataclass(frozen=True)
class Errors:
    """How far the values of all groups may be off, together.

    Attributes:
        shared: By how much each prompt moves the value of each group, shape (groups, prompts): an error of the values
            is the sum of these, each times a number from the normal distribution (multiplier bootstrap). 0 for groups
            that were measured on other pairs.
        own: Standard error by held-out data of these other groups, shape (groups,); 0 for the groups of `shared`.
        seeds: Variance of each value by the luck of its seeds, shape (groups,).
        freedom: Degrees of freedom of `seeds`; 0 if they are not known.
    """

    shared: Floats
    own: Floats
    seeds: Floats
    freedom: int

    @property
    def covariance(self) -> Floats:
        """Covariances of the values by the held-out data alone, shape (groups, groups)."""
        return np.asarray(self.shared @ self.shared.T + np.diag(self.own**2))

    def of(self, places: Sequence[int]) -> "Errors":
        """Returns those of some of the groups."""
        rows = list(places)
        return Errors(self.shared[rows], self.own[rows], self.seeds[rows], self.freedom)


@dataclass(frozen=True)
class Limits:
    """Standard errors that chance alone explains.

    Attributes:
        difference: For the difference of any group to the one that was chosen as the best.
        value: For the value of any group, and so for that of the chosen one.
    """

    difference: float
    value: float


def seed_luck(groups: Sequence[Values]) -> SeedLuck:
    """Estimates the variance between seeds, pooled over all groups with several, since two or three say little.

    A group whose own spread is larger keeps its own. The scatter of the seeds' answers over prompts is part of it:
    taking that away would leave nothing in many rankings of few seeds, whose luck would then be missing.
    """
    excess = np.array([float(group.seeds.var(ddof=1)) if len(group.seeds) > 1 else 0.0 for group in groups])
    freedom = np.array([len(group.seeds) - 1 for group in groups])
    if not freedom.sum():
        return SeedLuck(np.zeros(len(groups)), 0)
    return SeedLuck(np.maximum(excess, freedom @ excess / freedom.sum()), int(freedom.sum()))


def errors_of(groups: Sequence[Values], prompts: Prompts | None, luck: SeedLuck) -> Errors:
    """Returns the errors of the groups' values.

    Args:
        groups: All groups of a ranking.
        prompts: Of the pairs that their outcomes are of; None if no group has outcomes.
        luck: Of the seeds of the same groups.
    """
    num = 0 if prompts is None else prompts.num
    shared = np.zeros((len(groups), num))
    for row, group in zip(shared, groups, strict=True):
        if group.outcomes is not None and prompts is not None:
            mean = group.outcomes.mean(axis=0)
            row[:] = prompts.sums(mean - mean.mean())
    if prompts is not None:
        shared *= np.sqrt(num / max(num - 1, 1)) / len(prompts)
    return Errors(
        shared,
        np.array([_own_error(group) for group in groups]),
        luck.variances / [len(group.seeds) for group in groups],
        luck.freedom,
    )


def _own_error(group: Values) -> float:
    return (group.below + group.above) / (2 * Z_95) if group.outcomes is None and group.has_interval else 0.0


def find_limits(errors: Errors, may_win: NDArray[np.bool_]) -> Limits:
    """Returns the 95 % quantiles of the largest standardised errors (Chernozhukov, Chetverikov and Kato 2013).

    Each draw is a ranking of equally good groups: their errors are drawn together, the best of those that may win is
    chosen, and the others are compared with it. The true variance between seeds is drawn too, about the estimated one:
    few seeds may make that too small.

    Args:
        errors: Of all groups.
        may_win: Which groups may be chosen, shape (groups,).
    """
    rng = np.random.default_rng(SEED)
    covariance = errors.covariance
    of_data = np.diag(covariance)
    apart = np.maximum(of_data[:, None] + of_data - 2 * covariance, 0.0)
    differences, values = [], []
    for _ in range(0, DRAWS, BLOCK):
        drawn = rng.standard_normal((BLOCK, errors.shared.shape[1])) @ errors.shared.T
        drawn += rng.standard_normal(drawn.shape) * errors.own
        scale = rng.chisquare(errors.freedom, (BLOCK, 1)) / errors.freedom if errors.freedom else np.ones((BLOCK, 1))
        drawn += rng.standard_normal(drawn.shape) * np.sqrt(errors.seeds / scale)
        best = np.where(may_win, drawn, -inf).argmax(axis=1)
        gaps = drawn[np.arange(BLOCK), best][:, None] - drawn
        spread = apart[best] + errors.seeds[best][:, None] + errors.seeds
        differences.append((gaps / np.sqrt(np.maximum(spread, TINY**2))).max(axis=1))
        values.append((np.abs(drawn) / np.sqrt(np.maximum(of_data + errors.seeds, TINY**2))).max(axis=1))
    is_alone = len(may_win) == 2 and not errors.freedom  # nothing was chosen from more than the two
    return Limits(Z_95 if is_alone else _quantile(differences), _quantile(values))


def _quantile(scores: list[Floats]) -> float:
    """Returns the 95 % quantile, and at least that for a single group."""
    return max(float(np.quantile(np.concatenate(scores), LEVEL)), Z_95)


def at_few(z: float, prompts: Prompts) -> float:
    """Returns the quantile of Student's t for so few prompts that has the level of `z` in the normal distribution."""
    return -t_quantile(max(prompts.effective_num - 1, 1.0), float(ndtr(-z)))


def shrink(values: Floats, errors: Errors) -> float:
    """Moves the first of several values towards their mean, by as much as chance spreads them (James and Stein 1961).

    Args:
        values: Of the chosen group, then of those that might have been chosen, shape (groups,), at least two.
        errors: Of the same groups.
    """
    covariance = errors.covariance + np.diag(errors.seeds)
    num, alone = len(values), np.diag(covariance)
    together = (covariance.sum() - alone.sum()) / (num * (num - 1))
    variance = max(float(alone.mean() - together), 0.0)
    own = max(float(alone[0] - together), 0.0)
    between = max(float(values.var(ddof=1)) - variance, 0.0)
    factor = between / (between + own) if between + own > 0 else 1.0
    return float(values.mean() + factor * (values[0] - values.mean()))
