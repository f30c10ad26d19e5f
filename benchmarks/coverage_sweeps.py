"""Simulates rankings: how often `prefopt compare` calls a run worse than its equal, and how good a winner's number is.

Prompts, their pairs, and how hard each pair is are drawn anew for each sweep and shared by its runs, as a held-out set
is. `before` is what commit 1b0ce4e computed: every pair by itself, Welch's interval over seeds, no correction for the
number of rows, and for the winner the interval of its own report.
"""

import statistics
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from prefopt.comparison.groups import Group
from prefopt.comparison.ranking import Ranking, rank
from prefopt.comparison.records import Measure, Outcomes, RunRecord
from prefopt.data.intervals import Z_95, wilson
from prefopt.evaluation.metrics import ACCURACY, BY_KEY
from prefopt.evaluation.statistics import Floats, Prompts, t_quantile

METRIC = BY_KEY[ACCURACY]
SHARED = 0.5
"""Share of the variance that a pair's difficulty has, the same for all runs; the rest is each run's own."""


@dataclass(frozen=True)
class Setting:
    """A kind of sweep.

    Attributes:
        name: What the table calls it.
        accuracies: True accuracy of each configuration: of its average seed, over all prompts.
        num_seeds: Seeds of each configuration.
        seed_sd: Standard deviation between seeds, on the scale on which a single answer varies by 1.
        num_prompts: Held-out prompts.
        max_size: Each has 1 to so many pairs.
        likeness: How alike the pairs of a prompt are, from 0 to 1.
    """

    name: str
    accuracies: tuple[float, ...]
    num_seeds: int = 1
    seed_sd: float = 0.0
    num_prompts: int = 100
    max_size: int = 3
    likeness: float = 0.5


SETTINGS = [
    *(Setting(f"{num:,} equal runs", (0.8,) * num) for num in (10, 100, 1000)),
    Setting("100 equal runs at 95 %", (0.95,) * 100),
    Setting("12 unequal runs, 70 to 81 %", tuple(0.70 + 0.01 * step for step in range(12))),
    Setting("90 runs of 60 %, 10 of 85 %", (0.6,) * 90 + (0.85,) * 10),
    *(Setting(f"6 equal configurations x {num} seeds", (0.8,) * 6, num, 0.15) for num in (3, 5, 10)),
    Setting("12 equal runs, 30 prompts", (0.8,) * 12, num_prompts=30),
]


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep: its groups, the prompts of their pairs, and the true accuracy of what each group is.

    That of a group with one seed is the accuracy of that run, of one with several seeds that of an average seed.
    """

    groups: list[Group]
    prompts: NDArray[np.int64]
    truths: Floats


def draw_sweep(setting: Setting, rng: np.random.Generator) -> Sweep:
    """Draws a sweep: an answer is right if what the run can exceeds how hard the pair is for it."""
    sizes = rng.integers(1, setting.max_size + 1, setting.num_prompts)
    prompts = np.repeat(np.arange(setting.num_prompts), sizes)
    scale = sqrt(1 + setting.seed_sd**2)
    hard = sqrt(SHARED) * _alike(rng, prompts, setting.likeness)
    groups, truths = [], []
    for number, accuracy in enumerate(setting.accuracies):
        of_group = sqrt((1 - SHARED) / 2) * _alike(rng, prompts, setting.likeness)
        members = []
        for seed in range(setting.num_seeds):
            skill = float(ndtri(accuracy)) * scale + setting.seed_sd * rng.standard_normal()
            own = sqrt((1 - SHARED) / 2) * _alike(rng, prompts, setting.likeness)
            members.append(_record(f"{number}-{seed}", skill - hard - of_group - own, prompts))
        groups.append(Group(tuple(members), len(members)))
        truths.append(accuracy if setting.num_seeds > 1 else float(ndtr(skill)))
    return Sweep(groups, prompts, np.array(truths))


def _alike(rng: np.random.Generator, prompts: NDArray[np.int64], likeness: float) -> Floats:
    """Draws a number of variance 1 for each pair; those of a prompt have this correlation."""
    of_prompts = rng.standard_normal(prompts.max() + 1)[prompts]
    return np.asarray(sqrt(likeness) * of_prompts + sqrt(1 - likeness) * rng.standard_normal(len(prompts)))


def _record(name: str, margins: Floats, prompts: NDArray[np.int64]) -> RunRecord:
    value, n = float((margins > 0).mean()), len(margins)
    outcomes = Outcomes("pairs", {"tuned_margin": array("d", margins)}, array("q", prompts))
    metrics = {ACCURACY: Measure(value, *wilson(value * n, n), n)}
    return RunRecord(name, name, "done", has_report=True, metrics=metrics, outcomes=outcomes)


@dataclass(frozen=True)
class Claim:
    """What is said of a ranking: the places of its groups, best first, those called worse, and of the winner
    its value, the best guess of it, and its interval."""

    order: list[int]
    worse: set[int]
    value: float
    likely: float
    low: float
    high: float


def claim_after(sweep: Sweep) -> Claim:
    """What `prefopt compare` says."""
    ranking: Ranking = rank(sweep.groups, METRIC)
    place = {id(group): number for number, group in enumerate(sweep.groups)}
    order = [place[id(row.group)] for row in ranking.rows]
    worse = {place[id(row.group)] for row in ranking.rows if row.verdict == "worse"}
    winner = ranking.winner
    assert winner is not None
    return Claim(order, worse, winner.value, winner.likely, winner.low, winner.high)


def claim_before(sweep: Sweep) -> Claim:
    """What it said in commit 1b0ce4e."""
    seeds = [[member.metrics[ACCURACY].value for member in group.members] for group in sweep.groups]
    means = np.array([statistics.fmean(values) for values in seeds])
    order = [int(place) for place in np.argsort(-means, kind="stable")]
    best = order[0]
    hits = [np.asarray(group.members[0].outcomes.margins["tuned_margin"]) > 0 for group in sweep.groups]  # type: ignore[union-attr]
    worse = set()
    for place in order[1:]:
        if len(seeds[0]) > 1:
            high = _welch(seeds[place], seeds[best])
        else:
            wins, losses = ((hits[a] & ~hits[b]).sum() for a, b in ((place, best), (best, place)))
            high = _paired(int(wins), int(losses), len(sweep.prompts))
        worse |= {place} if high < 0 else set()
    value = float(means[best])
    num = Prompts.of(sweep.prompts).num
    low, high = wilson(value * num, num) if len(seeds[0]) == 1 else _one_mean(seeds[best])
    return Claim(order, worse, value, value, low, high)


def _welch(a: Sequence[float], b: Sequence[float]) -> float:
    """The upper end of Welch's interval of mean(a) - mean(b)."""
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    return statistics.fmean(a) - statistics.fmean(b) + t_quantile(freedom) * sqrt(sum(parts))


def _paired(wins: int, losses: int, n: int) -> float:
    """The upper end of the interval of Bonett and Price (2012) for a difference of two shares over n pairs."""
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    return p - q + Z_95 * sqrt((p + q - (p - q) ** 2) / (n + 2))


def _one_mean(values: Sequence[float]) -> tuple[float, float]:
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


@dataclass
class Tally:
    """What became of many claims.

    Attributes:
        num: Number of sweeps.
        false_worse: Sweeps in which a group was called worse that is not.
        num_far: Groups that are worse than the winner by 15 points or more.
        found: How many of these were called worse.
        bias: Best guess of the winner's accuracy less its true one, summed over sweeps.
        measured_bias: The same of the measured value.
        covered: Sweeps in which the winner's interval held the truth.
    """

    num: int = 0
    false_worse: int = 0
    num_far: int = 0
    found: int = 0
    bias: float = 0.0
    measured_bias: float = 0.0
    covered: int = 0

    def add(self, claim: Claim, truths: Floats) -> None:
        best = float(truths[claim.order[0]])
        far = {place for place in range(len(truths)) if truths[place] <= best - 0.15}
        self.num += 1
        self.false_worse += any(truths[place] >= best for place in claim.worse)
        self.num_far += len(far)
        self.found += len(far & claim.worse)
        self.bias += claim.likely - best
        self.measured_bias += claim.value - best
        self.covered += claim.low <= best <= claim.high


CLAIMS: dict[str, Callable[[Sweep], Claim]] = {"before": claim_before, "after": claim_after}


def simulate(setting: Setting, num_sweeps: int, seed: int = 0) -> dict[str, Tally]:
    """Draws sweeps of one kind, and returns for `before` and `after` what became of the claims."""
    rng = np.random.default_rng(seed)
    tallies = {name: Tally() for name in CLAIMS}
    for _ in range(num_sweeps):
        sweep = draw_sweep(setting, rng)
        for name, claim in CLAIMS.items():
            tallies[name].add(claim(sweep), sweep.truths)
    return tallies


def simulate_sweeps(rounds: int = 2000, seed: int = 0) -> Iterator[dict[str, object]]:
    """Yields the rows of a table: for each kind of sweep, what happened before and after, side by side.

    `false_worse` is the share of sweeps in which any row was called worse than #1 and is not; `far_worse_found` the
    share of the rows worse by 15 points that were called so; `winner_bias` how much too high the best guess of the
    winner's accuracy is on average; `winner_coverage` the share of sweeps in which its interval held the truth.

    Args:
        rounds: A quarter of it is the number of sweeps of each kind; for those of many runs, fewer in proportion.
        seed: Makes the table reproducible.
    """
    for setting in SETTINGS:
        num = max(rounds // max(4, len(setting.accuracies) // 20), 20)
        tallies = simulate(setting, num, seed)
        row: dict[str, object] = {"sweep": setting.name, "sweeps": num}
        for name, tally in tallies.items():
            row |= {
                f"false_worse_{name}": tally.false_worse / num,
                f"far_worse_found_{name}": tally.found / tally.num_far if tally.num_far else None,
                f"winner_bias_{name}": tally.bias / num,
                f"winner_coverage_{name}": tally.covered / num,
            }
        yield row
