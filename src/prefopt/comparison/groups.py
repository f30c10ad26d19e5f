"""Groups of runs that differ only in their seed, with mean and standard deviation over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from prefopt.comparison.records import Measure, RunRecord
from prefopt.comparison.settings import Settings, identity_but_seed
from prefopt.evaluation.metrics import Metric

MIN_STEM = 3
"""Least length of a common prefix of names that serves as the name of a group."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric of a group.

    Attributes:
        mean: Mean over the members that have the metric; for a single run its value.
        sd: Sample standard deviation over seeds; None for a single run.
        values: One per member that has the metric.
        single: The measure of a single run, with its interval; None for several seeds.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]
    single: Measure | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Mean ± one standard deviation over seeds, or the interval of a single run; None if it is not known."""
        if self.sd is not None:
            return self.mean - self.sd, self.mean + self.sd
        if self.single is None or self.single.low is None or self.single.high is None:
            return None
        return self.single.low, self.single.high


@dataclass(frozen=True, slots=True)
class Group:
    """Finished runs of one configuration, each with a different seed. `num_planned` counts unfinished runs too."""

    members: tuple[RunRecord, ...]
    num_planned: int

    @property
    def settings(self) -> Settings:
        return self.members[0].settings

    @property
    def name(self) -> str:
        """The run's name; for several seeds their common prefix `voice-seed=*`, or without a clear one `0075 +4`."""
        names = [member.name for member in self.members]
        start = _common_start(names)
        if len(names) == 1:
            return names[0]
        return f"{start}*" if len(start) >= MIN_STEM and not start[-1].isdigit() else f"{names[0]} +{len(names) - 1}"

    @property
    def decisions(self) -> dict[str, int]:
        """Decision -> number of reports with it."""
        found = [member.decision for member in self.members if member.decision is not None]
        return {decision: found.count(decision) for decision in dict.fromkeys(found)}

    def spread(self, metric: Metric | str) -> Spread | None:
        """Returns the metric over the members; None if no member has it."""
        key = metric if isinstance(metric, str) else metric.key
        measures = [member.metrics[key] for member in self.members if key in member.metrics]
        if not measures:
            return None
        values = tuple(measure.value for measure in measures)
        if len(values) == 1:
            return Spread(values[0], None, values, measures[0])
        return Spread(statistics.fmean(values), statistics.stdev(values), values, None)


def group_by_seed(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups the finished runs, in the order of their first members.

    A run with the configuration *and* the seed of an earlier run is not a further seed: it goes to another group. A
    run whose configuration is unknown is a group of its own.
    """
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    planned: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, str], int] = {}
    for run in runs:
        identity = identity_but_seed(run.settings) if "algorithm.name" in run.settings else f"unknown: {run.name}"
        twin = (identity, repr(run.seed))
        copy = seen[twin] = seen.get(twin, -1) + 1
        planned[identity, copy] = planned.get((identity, copy), 0) + 1
        if run.is_ranked:
            groups.setdefault((identity, copy), []).append(run)
    return [Group(tuple(members), planned[key]) for key, members in groups.items()]


def _common_start(names: Sequence[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def find_duplicates(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Returns pairs of names (run, earlier run) for runs with the configuration and the seed of an earlier run."""
    first: dict[tuple[str, str], str] = {}
    pairs = []
    for run in runs:
        if "algorithm.name" in run.settings:
            earlier = first.setdefault((identity_but_seed(run.settings), repr(run.seed)), run.name)
            if earlier != run.name:
                pairs.append((run.name, earlier))
    return pairs
