"""Differences of a ranking's rows to its first, and what the first row's own number is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import hypot, nan, sqrt

import numpy as np

from prefopt.comparison.groups import Group
from prefopt.comparison.outcomes import outcomes_of
from prefopt.comparison.records import RunRecord
from prefopt.comparison.simultaneous import Values, at_few, errors_of, find_limits, seed_luck, shrink
from prefopt.comparison.wins import shared_wins
from prefopt.data.intervals import Z_95
from prefopt.evaluation.metrics import PERCENT, WIN_RATE, Better, Metric
from prefopt.evaluation.statistics import FEWEST_PROMPTS, Estimate, Floats, Prompts, change_of_means, difference, share


class Method(Enum):
    """How the interval of a difference was computed."""

    paired = "pair by pair"
    by_prompt = "prompt by prompt"
    unpaired = "both intervals"
    seeds = "seeds alone"


EXPLANATIONS = {
    Method.paired: "pair by pair, since the runs answered the same held-out pairs",
    Method.by_prompt: "prompt by prompt, since the same judge read the runs' answers to the same prompts, against the "
    "same contestant",
    Method.unpaired: "from both runs' own intervals, as if measured on different data: cautious for the same data",
    Method.seeds: "from the spread of the seeds alone, since the runs have no interval: it leaves out which prompts "
    "happen to be held out",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """`value` = other - best in the metric's own unit, with an interval that holds for all rows of a ranking at once.

    If nearer to zero is better, it is the difference of the distances from zero.
    """

    value: float
    low: float
    high: float
    method: Method

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0, so that the data do not tell the two apart."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Winner:
    """The number of the first row, which was chosen by that number and so is on the lucky side.

    Attributes:
        value: As measured.
        likely: Moved towards the rows that these data do not tell from it, by as much as chance spreads them.
        low: Lower end of a 95 % interval that holds although the row was chosen, and whichever was.
        high: Upper end.
        num: Number of rows that it was chosen from.
    """

    value: float
    likely: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What the numbers of a ranking say.

    Attributes:
        differences: One per group to the first one; None for the first itself, and where it is not known.
        winner: None if the first was not chosen from several, or if its uncertainty is not known.
        has_seed_luck: Whether the luck of a training's seed is in the intervals.
    """

    differences: list[Difference | None]
    winner: Winner | None
    has_seed_luck: bool


def compare_with_first(groups: Sequence[Group], metric: Metric, may_win: Sequence[bool]) -> Compared:
    """Compares the groups of a ranking with the first one.

    Args:
        groups: Groups that have the metric, in the order of the ranking.
        metric: The metric that they are ranked by.
        may_win: For each group whether it may be the first.
    """
    prompts, outcomes = _shared_outcomes(groups, metric)
    values = [_values(*each, metric) for each in zip(groups, outcomes, may_win, strict=True)]
    has_seeds = any(len(each.seeds) > 1 for each in values)
    known = [place for place, each in enumerate(values) if _may_be_compared(each, metric, has_seeds=has_seeds)]
    differences: list[Difference | None] = [None] * len(groups)
    if len(known) < 2 or known[0] != 0:
        return Compared(differences, None, has_seeds)
    ranking = _Ranking([values[place] for place in known], prompts, metric)
    for number, place in enumerate(known[1:], start=1):
        differences[place] = ranking.difference(number)
    of_known = [differences[place] for place in known]
    return Compared(differences, ranking.winner(of_known, num=sum(may_win)), has_seeds)


def _may_be_compared(values: Values, metric: Metric, *, has_seeds: bool) -> bool:
    """Whether anything tells chance: a win rate by another judge, or over another contestant, is another number."""
    if metric.key == WIN_RATE:
        return values.outcomes is not None
    return has_seeds or values.is_known


class _Ranking:
    """The groups of a ranking with the errors of their values; the first group is the best."""

    def __init__(self, groups: Sequence[Values], prompts: Prompts | None, metric: Metric) -> None:
        self.groups, self.prompts, self.metric = groups, prompts, metric
        self.errors = errors_of(groups, prompts, seed_luck(groups))
        self.can_win = np.array([group.may_win for group in groups])
        self.limits = find_limits(self.errors, self.can_win)
        self.is_pair = len(groups) == 2 and not self.errors.freedom

    def difference(self, place: int) -> Difference | None:
        """Compares a group with the first one; None if there are too few prompts, or nothing tells chance."""
        ours, theirs = self.groups[place].outcomes, self.groups[0].outcomes
        by_seeds = float(self.errors.seeds[place] + self.errors.seeds[0])
        if ours is None or theirs is None or self.prompts is None:
            return self._unpaired(place)
        changes = ours.mean(axis=0) - theirs.mean(axis=0)
        if self.metric.unit is PERCENT:
            z = self.limits.difference
            z = z if self.is_pair else at_few(z, self.prompts)  # of two runs as in a report
            found, _ = change_of_means(changes, self.prompts, z, by_seeds)
            method = Method.by_prompt if self.metric.key == WIN_RATE else Method.paired
            return Difference(found.value, found.low, found.high, method)
        if self.prompts.effective_num < FEWEST_PROMPTS:
            return None
        apart = self.errors.shared[place] - self.errors.shared[0]
        half = at_few(self.limits.difference, self.prompts) * sqrt(float(apart @ apart) + by_seeds)
        value = float(changes.mean())
        return Difference(value, value - half, value + half, Method.paired)

    def _unpaired(self, place: int) -> Difference | None:
        sides = [self._interval(each, self.limits.difference, self.limits.difference) for each in (place, 0)]
        if any(side is None or side.low == side.high for side in sides):
            return None
        is_folded = self.metric.better is Better.near_zero
        found = difference(*(fold(side) if is_folded else side for side in sides if side is not None))
        has_intervals = all(self.groups[each].is_known for each in (place, 0))
        return Difference(found.value, found.low, found.high, Method.unpaired if has_intervals else Method.seeds)

    def winner(self, differences: Sequence[Difference | None], num: int) -> Winner | None:
        """Returns what the first group's value is worth, chosen from `num` groups."""
        above = self.limits.value if self.metric.better is not Better.higher else Z_95
        below = self.limits.value if self.metric.better is not Better.lower else Z_95
        found = self._interval(0, below, above)
        if num < 2 or found is None or self.metric.better is Better.near_zero:
            return None
        rivals = [place for place, each in enumerate(differences) if each is not None and each.is_noise]
        places = [0, *(place for place in rivals if self.can_win[place])]
        values = np.array([self.groups[place].mean for place in places])
        likely = shrink(values, self.errors.of(places)) if len(places) > 1 else found.value
        return Winner(found.value, likely, min(found.low, likely), max(found.high, likely), num)

    def _interval(self, place: int, below: float, above: float) -> Estimate | None:
        """Returns a group's value with an interval of so many standard errors below and above it; None without one."""
        group = self.groups[place]
        by_data = self._interval_by_data(group, place, below, above)
        if by_data is None and (group.outcomes is not None or not self.errors.freedom):
            return None
        value, by_seeds = group.mean, sqrt(float(self.errors.seeds[place]))
        less, more = (0.0, 0.0) if by_data is None else (value - by_data.low, by_data.high - value)
        found = Estimate(value, value - hypot(less, below * by_seeds), value + hypot(more, above * by_seeds))
        return found.clipped(0.0, 1.0) if self.metric.unit is PERCENT else found

    def _interval_by_data(self, group: Values, place: int, below: float, above: float) -> Estimate | None:
        value, prompts = group.mean, self.prompts
        if group.outcomes is None or prompts is None:
            less, more = (z / Z_95 * part for z, part in zip((below, above), (group.below, group.above), strict=True))
            return Estimate(value, value - less, value + more) if group.has_interval else None
        if self.metric.unit is PERCENT:
            outcomes = group.outcomes.mean(axis=0)
            return Estimate(value, share(outcomes, prompts, below).low, share(outcomes, prompts, above).high)
        if prompts.effective_num < FEWEST_PROMPTS:
            return None
        error = float(np.linalg.norm(self.errors.shared[place]))
        return Estimate(value, value - at_few(below, prompts) * error, value + at_few(above, prompts) * error)


def fold(found: Estimate) -> Estimate:
    """Returns the distance from zero."""
    ends = abs(found.low), abs(found.high)
    return Estimate(abs(found.value), 0.0 if found.low <= 0 <= found.high else min(ends), max(ends))


def _shared_outcomes(groups: Sequence[Group], metric: Metric) -> tuple[Prompts | None, list[Floats | None]]:
    """Returns the outcomes of the groups whose seeds all answered the pairs of the first group, and their prompts."""
    if metric.key == WIN_RATE:
        return shared_wins(groups)
    nothing: list[Floats | None] = [None] * len(groups)
    first = _measured(groups[0], metric)[0].outcomes if groups else None
    if first is None or metric.better not in (Better.higher, Better.lower):
        return None, nothing
    prompts = Prompts.all_different(first.num_pairs) if first.prompts is None else Prompts.of(first.prompts)
    order = np.argsort(prompts.numbers, kind="stable")  # sums by prompt are fastest in this order
    found = [_outcomes(_measured(group, metric), metric, first.pairs) for group in groups]
    return prompts.select(order), [None if each is None else each[:, order] for each in found]


def _outcomes(members: Sequence[RunRecord], metric: Metric, pairs: str) -> Floats | None:
    rows = [
        None if run.outcomes is None or run.outcomes.pairs != pairs else outcomes_of(run.outcomes, metric.key)
        for run in members
    ]
    return None if any(row is None for row in rows) else np.array(rows)


def _measured(group: Group, metric: Metric) -> list[RunRecord]:
    return [member for member in group.members if metric.key in member.metrics]


def _values(group: Group, outcomes: Floats | None, may_win: bool, metric: Metric) -> Values:
    measures = [member.metrics[metric.key] for member in _measured(group, metric)]
    below = [measure.value - measure.low for measure in measures if measure.low is not None]
    above = [measure.high - measure.value for measure in measures if measure.high is not None]
    has_interval = len(below) == len(above) == len(measures)
    return Values(
        np.array([measure.value for measure in measures]),
        float(np.mean(below)) if has_interval else nan,
        float(np.mean(above)) if has_interval else nan,
        outcomes,
        may_win,
    )
