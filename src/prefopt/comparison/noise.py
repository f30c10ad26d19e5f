"""95 % intervals of differences between runs, which tell whether a difference is more than noise."""

import math
import statistics
from dataclasses import dataclass
from enum import Enum

from prefopt.comparison.groups import Group, Spread
from prefopt.comparison.outcomes import outcomes_of
from prefopt.comparison.records import Measure
from prefopt.data.intervals import Z_95
from prefopt.evaluation.metrics import Metric
from prefopt.evaluation.statistics import t_quantile


class Method(Enum):
    """How the interval of a difference was computed."""

    seeds = "seeds"
    one_run = "one run against seeds"
    paired = "pair by pair"
    unpaired = "both intervals"


EXPLANATIONS = {
    Method.seeds: "Welch's interval of the difference of the seeds' means, on these held-out data",
    Method.one_run: "where one side has a single seed, the other side's spread over seeds stands for both",
    Method.paired: "pair by pair: both runs answered the same held-out pairs",
    Method.unpaired: "from both runs' own intervals, as if measured on different pairs: cautious for the same pairs",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """`value` = other - best, with its 95 % interval, in the metric's own unit."""

    value: float
    low: float
    high: float
    method: Method

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0, so that the data do not tell the two apart."""
        return self.low <= 0 <= self.high


def compare_groups(best: Group, other: Group, metric: Metric) -> Difference | None:
    """Returns the difference other - best; None if a value or its uncertainty is not known.

    Several seeds are compared by their spread, because it contains all random effects on a run. If the spread is 0
    (all seeds have the same value), the intervals over held-out pairs are used instead.
    """
    a, b = other.spread(metric), best.spread(metric)
    if a is None or b is None:
        return None
    if a.sd is None and b.sd is None:
        return _paired(best, other, metric) or _unpaired(a.single, b.single)
    return _by_seeds(a, b) or _unpaired(_interval_over_pairs(other, metric), _interval_over_pairs(best, metric))


def welch(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float] | None:
    """The 95 % interval of mean(a) - mean(b) without assuming equal variances (Welch 1947); None if both are 0.

    Args:
        a: At least two values.
        b: At least two values.
    """
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    if sum(parts) == 0:
        return None
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    half = t_quantile(freedom) * math.sqrt(sum(parts))
    value = statistics.fmean(a) - statistics.fmean(b)
    return value - half, value + half


def paired_shares(wins: int, losses: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a difference of two shares over the same n pairs (Bonett and Price 2012).

    Args:
        wins: Pairs that only the first got right.
        losses: Pairs that only the second got right.
        n: All pairs.
    """
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return p - q - half, p - q + half


def _by_seeds(a: Spread, b: Spread) -> Difference | None:
    value = a.mean - b.mean
    if a.sd is not None and b.sd is not None:
        interval = welch(a.values, b.values)
        return Difference(value, *interval, Method.seeds) if interval else None
    many = a if a.sd is not None else b
    assert many.sd is not None, "one side has several seeds"
    half = t_quantile(len(many.values) - 1) * many.sd * math.sqrt(1 + 1 / len(many.values))
    return Difference(value, value - half, value + half, Method.one_run) if half else None


def _paired(best: Group, other: Group, metric: Metric) -> Difference | None:
    first, second = other.members[0].outcomes, best.members[0].outcomes
    if first is None or second is None or first.pairs != second.pairs:
        return None
    ours, theirs = outcomes_of(first, metric.key), outcomes_of(second, metric.key)
    if ours is None or theirs is None or len(ours) < 2:
        return None
    changes = [a - b for a, b in zip(ours, theirs, strict=True)]
    value = statistics.fmean(changes)
    if set(changes) <= {-1.0, 0.0, 1.0}:
        return Difference(value, *paired_shares(changes.count(1.0), changes.count(-1.0), len(changes)), Method.paired)
    half = t_quantile(len(changes) - 1) * statistics.stdev(changes) / math.sqrt(len(changes))
    return Difference(value, value - half, value + half, Method.paired)


def _unpaired(a: Measure | None, b: Measure | None) -> Difference | None:
    """Combines the intervals of independent estimates (Newcombe 1998, method 10; Zou and Donner 2008 in general)."""
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Difference(value, low, high, Method.unpaired)


def _interval_over_pairs(group: Group, metric: Metric) -> Measure | None:
    measures = [member.metrics[metric.key] for member in group.members if metric.key in member.metrics]
    return next((measure for measure in measures if measure.low is not None), None)
