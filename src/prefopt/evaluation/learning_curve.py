"""Whether there are enough data: held-out accuracy by the number of training examples, and what twice as many give.

Every number here is, or is close to, a weighted sum of the sizes' accuracies (the accuracy at one size, the last
doubling, what the fitted curve expects), so one function finds the intervals of them all. They stand for both kinds of
chance: which prompts are held out, and the seeds, which draw the subsets and the order of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.statistics import Estimate, Floats, detectable_gain, needed_pairs, t_quantile

GAINS = (0.01, 0.02, 0.05, 0.10)
"""Gains in accuracy for which the held-out prompts that show them are counted."""
SMALL_GAIN = 0.03
"""If a doubling cannot be expected to gain this much, more of the same data hardly helps."""
NUM_IMAGINED = 4
"""Prompts that are imagined beside those of the held-out set; see `_Table`."""


@dataclass(frozen=True)
class Trained:
    """A training on a part of the data, and how it did on the held-out pairs.

    Attributes:
        share: Share of the training prompts that it saw.
        n: Number of training examples in them.
        seed: Seed of the subset and of the training.
        hits: For each held-out pair whether the tuned model prefers the chosen answer, shape (pairs,).
        steps: Optimizer steps.
    """

    share: float
    n: int
    seed: int
    hits: NDArray[np.bool_]
    steps: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "seed": self.seed,
            "accuracy": float(self.hits.mean()),
            "n_held_out": len(self.hits),
            "share": self.share,
            "steps": self.steps,
        }


@dataclass(frozen=True)
class Size:
    """All trainings on the same share of the data: their mean accuracy."""

    share: float
    n: int
    accuracy: Estimate


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy against the number of training examples n.

    Attributes:
        points: All trainings.
        sizes: The same by size, smallest first.
        base: Accuracy of the model before training; None if it was not measured.
        num_prompts: Number of held-out prompts.
        intercept: The fitted curve is log-odds(accuracy) = `intercept + slope * log2(n)`.
        slope: See there.
        expected: What the fitted curve gains from twice the data.
        bend: How the log-odds bend away from the line: the coefficient of log2(n) squared.
        last: The gain of the last measured doubling, or whatever the last step is.
        discordant: Share of held-out pairs on which the models of the last two sizes (of one seed) disagree.
        pairs_per_prompt: Held-out pairs that count as one prompt: their number, divided by what their likeness costs.
        rows: What the training examples are called: pairs, or demonstrations.
    """

    points: Sequence[Trained]
    sizes: Sequence[Size]
    base: Estimate | None
    num_prompts: int
    intercept: float
    slope: Estimate
    expected: Estimate
    bend: Estimate
    last: Estimate
    discordant: float
    pairs_per_prompt: float
    rows: str = "pairs"

    @property
    def num_pairs(self) -> int:
        """Number of held-out pairs."""
        return len(self.points[0].hits)

    @property
    def shape(self) -> str:
        """straight, flattening or steepening: whether the curve fits, as far as these data can tell."""
        if self.bend.high < 0:
            return "flattening"
        return "steepening" if self.bend.low > 0 and self.last.low > 0 else "straight"

    @property
    def doubling(self) -> Estimate:
        """The gain to expect from twice the data.

        It is the fitted curve's. How wrong that may be is not known, so its interval is widened by the distance to the
        gain of the last doubling, which needs no curve. Where the curve does not fit, the last doubling stands for the
        next one: if the accuracies flatten, it is the most; if they rise ever faster, the next one may bring nothing,
        or all that is left. No more is promised than is left up to 1.
        """
        accuracy = self.sizes[-1].accuracy
        left, most = 1 - accuracy.value, 1 - accuracy.low
        doubt = abs(self.expected.value - self.last.value)
        gain, low, high = {
            "straight": (self.expected.value, self.expected.low - doubt, self.expected.high + doubt),
            "flattening": (self.last.value, min(self.last.low, 0.0), self.last.high),
            "steepening": (self.last.value, min(self.last.low, 0.0), most),
        }[self.shape]
        return Estimate(min(gain, left), min(low, left), min(high, most), self.last.n)

    @property
    def detectable(self) -> float:
        """The smallest gain that a paired comparison on these held-out prompts shows with 80 % power."""
        return detectable_gain(self.num_prompts * self.pairs_per_prompt, self.discordant)

    @property
    def needed(self) -> list[tuple[float, int]]:
        """Gains, each with the held-out prompts that show it with 80 % power."""
        return [(gain, ceil(needed_pairs(gain, self.discordant) / self.pairs_per_prompt)) for gain in GAINS]

    def predict(self, n: float) -> float:
        """Returns the fitted accuracy at `n` examples."""
        return float(_share(self.intercept + self.slope.value * np.log2(n)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "points": [point.to_dict() for point in self.points],
            "by_n": [{"n": size.n, "share": size.share, **_write(size.accuracy)} for size in self.sizes],
            "base": None if self.base is None else _write(self.base),
            "num_held_out_pairs": self.num_pairs,
            "num_held_out_prompts": self.num_prompts,
            "fit": {
                "form": "log_odds(accuracy) = intercept + slope * log2(n)",
                "intercept": self.intercept,
                "slope": _write(self.slope),
                "expected": _write(self.expected),
                "bend": _write(self.bend),
                "shape": self.shape,
            },
            "last_doubling": _write(self.last),
            "doubling": {"n": 2 * self.sizes[-1].n, **_write(self.doubling)},
            "discordant": self.discordant,
            "detectable": self.detectable,
            "needed": [{"gain": gain, "prompts": prompts} for gain, prompts in self.needed],
        }


def fit_learning_curve(
    points: Sequence[Trained], prompts: NDArray[np.int64], base: NDArray[np.bool_] | None = None, rows: str = "pairs"
) -> LearningCurve:
    """Fits log-odds(accuracy) = a + b log2(n), by least squares over the sizes.

    Far from 0 and 1 that is a line on the usual plot of accuracy against log n. Near 1 it is the power law by which
    errors fall with the data (Hestness et al. 2017), and it never passes 1: a line promises too much there. Four
    sizes cannot tell more parameters apart, and further than one doubling it is not to be trusted.

    Args:
        points: Trainings on at least two sizes, each with the same seeds; `hits` are of the same pairs.
        prompts: Prompt number of each held-out pair, shape (pairs,): pairs of one prompt are not independent.
        base: As `Trained.hits`, of the model before training.
        rows: What the training examples are called.
    """
    shares = sorted({point.share for point in points})
    seeds = sorted({point.seed for point in points})
    of = {(point.share, point.seed): point for point in points}
    assert len(of) == len(points) == len(shares) * len(seeds) > len(seeds), "every seed on every size, at least two"
    sizes = [round(sum(of[share, seed].n for seed in seeds) / len(seeds)) for share in shares]
    table = _Table.of(np.array([[of[share, seed].hits for seed in seeds] for share in shares]), prompts)
    only = np.eye(len(sizes))
    accuracies = [table.estimate(size).clipped(0, 1) for size in only]
    line = _Line.through(np.log2(sizes), table)
    return LearningCurve(
        points=points,
        sizes=[Size(*size) for size in zip(shares, sizes, accuracies, strict=True)],
        base=None if base is None else _Table.of(base[None, None], prompts).estimate(np.ones(1)).clipped(0, 1),
        num_prompts=table.num_prompts,
        intercept=line.intercept,
        slope=line.slope,
        expected=line.gain(),
        bend=line.bend(),
        last=table.estimate(only[-1] - only[-2]),
        discordant=float((table.hits[-1] != table.hits[-2]).mean()),
        pairs_per_prompt=_pairs_per_prompt(table.hits[-1].astype(float) - table.hits[-2], prompts),
        rows=rows,
    )


def _pairs_per_prompt(changes: Floats, prompts: NDArray[np.int64]) -> float:
    """Returns how many independent pairs the pairs of a prompt are worth, for `changes` of shape (seeds, pairs)."""
    sums, sizes = _by_prompt(changes, prompts)
    num_pairs, num_prompts = len(prompts), len(sizes)
    means = changes.mean(axis=1, keepdims=True)
    alone = ((changes - means) ** 2).sum() / num_pairs
    together = ((sums - means * sizes) ** 2).sum() / num_pairs
    return float(num_pairs / num_prompts * (alone / together if together > 0 else 1.0))


def _by_prompt(values: Floats, prompts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sums up the last axis of `values` by prompt, and counts the pairs of each prompt."""
    _, numbers, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    order, starts = np.argsort(numbers, kind="stable"), np.cumsum(sizes) - sizes
    return np.add.reduceat(values[..., order], starts, axis=-1), sizes.astype(float)


@dataclass(frozen=True)
class _Table:
    """Results of all trainings by prompt, for estimates over the sizes.

    The intervals include four imagined prompts: one that only the larger sizes' models get right, one that only the
    smaller sizes' do, one that only those in the middle do, and one that only those at the ends do. So no interval has
    the width 0 because the few prompts at hand happened to agree. For a single accuracy this is Agresti's and Coull's
    interval, for a difference it is close to Bonett's and Price's.

    Attributes:
        hits: Shape (sizes, seeds, pairs).
        sums: Hits by prompt, then those of the imagined prompts: shape (sizes, seeds, prompts).
        weights: Pairs of each prompt; the imagined ones have as many as the average prompt.
    """

    hits: NDArray[np.bool_]
    sums: Floats
    weights: Floats

    @classmethod
    def of(cls, hits: NDArray[np.bool_], prompts: NDArray[np.int64]) -> "_Table":
        sums, weights = _by_prompt(hits.astype(float), prompts)
        size = np.arange(len(hits))
        is_larger, is_inner = size >= len(hits) / 2, (size > 0) & (size < len(hits) - 1)
        imagined = np.array([is_larger, ~is_larger, is_inner, ~is_inner]) * weights.mean()
        shape = (len(hits), hits.shape[1], NUM_IMAGINED)
        padded = np.concatenate([sums, np.broadcast_to(imagined.T[:, None], shape)], axis=-1)
        return cls(hits, padded, np.append(weights, np.full(NUM_IMAGINED, weights.mean())))

    @property
    def num_prompts(self) -> int:
        return len(self.weights) - NUM_IMAGINED

    @property
    def accuracies(self) -> Floats:
        """Mean accuracy of each size."""
        return np.asarray(self.hits.mean(axis=(1, 2)))

    def estimate(self, of_sizes: Floats, value: float | None = None) -> Estimate:
        """Estimates a weighted sum of the sizes' accuracies, or another `value` that has these derivatives by them.

        The prompts are shared by all trainings, and what the seeds add is independent from size to size. The variance
        is the sum of both parts; its degrees of freedom are Satterthwaite's, few where three seeds decide. Few seeds
        often agree by chance, so the spread of a size counts as no less than that of a larger one.
        """
        num_seeds, num_prompts = self.sums.shape[1:]
        means = self.sums.sum(axis=-1) / self.weights.sum()
        residuals = (self.sums - means[..., None] * self.weights) * num_prompts / self.weights.sum()
        of_prompts = np.tensordot(of_sizes, residuals.mean(axis=1), axes=1)
        parts = [(of_prompts**2).sum() / (num_prompts * (num_prompts - 1))]
        freedom = [float(num_prompts - 1)]
        if num_seeds > 1:
            noise = (residuals - residuals.mean(axis=1, keepdims=True)) ** 2
            scatter = noise.sum(axis=(1, 2)) / ((num_prompts - 1) * (num_seeds - 1)) / (num_prompts * num_seeds)
            spread = np.maximum.accumulate(means.var(axis=1, ddof=1)[::-1])[::-1]
            between = of_sizes**2 * spread / num_seeds
            if between.sum() > of_sizes**2 @ scatter:  # else the prompts' part alone explains what differs
                parts += [*between, -(of_sizes**2 @ scatter)]
                freedom += [num_seeds - 1.0] * len(between) + [(num_prompts - 1.0) * (num_seeds - 1)]
        variance = sum(parts)
        doubts = sum(part**2 / each for part, each in zip(parts, freedom, strict=True))
        half = t_quantile(max(variance**2 / doubts, 1.0)) * sqrt(variance) if variance else 0.0
        centre = value
        if value is None or centre is None:
            value, centre = float(of_sizes @ self.accuracies), float(of_sizes @ means.mean(axis=1))
        low, high = min(centre - half, value), max(centre + half, value)
        return Estimate(value, float(low), float(high), self.hits.shape[-1])


@dataclass(frozen=True)
class _Line:
    """The least-squares line through the log-odds of the sizes' accuracies.

    Attributes:
        logs: log2(n) of each size.
        table: The results.
        odds: Log-odds of the accuracy of each size.
        steepness: Change of the log-odds with the accuracy.
    """

    logs: Floats
    table: _Table
    odds: Floats
    steepness: Floats

    @classmethod
    def through(cls, logs: Floats, table: _Table) -> "_Line":
        half_a_hit = 0.5 / table.hits[0].size  # the log-odds of 0 and 1 are infinite
        shares = np.clip(table.accuracies, half_a_hit, 1 - half_a_hit)
        return cls(logs, table, np.log(shares / (1 - shares)), 1 / (shares * (1 - shares)))

    @property
    def _slope(self) -> Floats:
        """Weights of the log-odds in the slope."""
        centred = self.logs - self.logs.mean()
        return np.asarray(centred / (centred @ centred))

    @property
    def slope(self) -> Estimate:
        return self._estimate(self._slope)

    @property
    def intercept(self) -> float:
        return float(self.odds.mean() - self.slope.value * self.logs.mean())

    def bend(self) -> Estimate:
        """Estimates the coefficient of log2(n) squared, were it fitted too; 0 for two sizes."""
        powers = np.vander(self.logs - self.logs.mean(), 3, increasing=True)
        return self._estimate(np.linalg.pinv(powers)[2] if len(self.logs) > 2 else np.zeros(2))

    def gain(self) -> Estimate:
        """Estimates what the line gains from the largest size to twice as much."""
        ends = self.logs[-1] + np.array([0.0, 1.0])
        weights = 1 / len(self.logs) + (ends[:, None] - self.logs.mean()) * self._slope
        shares = _share(weights @ self.odds)
        before, after = (shares * (1 - shares))[:, None] * weights * self.steepness
        return self.table.estimate(after - before, float(shares[1] - shares[0]))

    def _estimate(self, of_odds: Floats) -> Estimate:
        return self.table.estimate(of_odds * self.steepness, float(of_odds @ self.odds))


def _share(odds: Floats) -> Floats:
    """The share that has these log-odds."""
    return np.asarray(1 / (1 + np.exp(-odds)))


def _write(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "ci95": [estimate.low, estimate.high]}
