"""How often the 95 % intervals of a report hold the truth, and how often equal models are told apart, by simulation.

python -m benchmarks.coverage
python -m benchmarks.coverage --rounds 4000 --write

Each line shows the functions of an earlier version (1b0ce4e: `before`) beside today's (`after`). Pairs of a prompt are
alike: each takes its prompt's value with probability sqrt(ICC), else one of its own, so that two of them correlate by
the ICC. Prompts have 1 to 5 pairs each, and in some lines one of them has 20 or 50.

  shares   a share such as preference accuracy: coverage of its interval; truth .5, .9, .98
  changes  base and tuned are equally good, and disagree on 30 % or 5 % of pairs: how often one is called better or
           worse by the interval, and how often p < .05
  large prompts   of 10 or 20 pairs that are harder than the others: coverage of a share; and on which alone equally
           good models disagree: how often they are told apart
  means    a ratio of skewed sums, as KL per token is, and a plain mean: coverage
  sweeps   equal configurations: how often any is called worse than the best; how well the best one is estimated
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import comb, erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage_sweeps import simulate_sweeps
from benchmarks.results import write_results
from prefopt.data.intervals import wilson
from prefopt.evaluation.statistics import Bootstrap, Prompts, change_of_share, share

PACKAGES = ("prefopt", "numpy", "scipy")
NUMS, ICCS, TRUTHS, DISCORDANT = (30, 100, 300), (0.0, 0.5, 1.0), (0.5, 0.9, 0.98), (0.3, 0.05)
LAYOUTS = {"1 to 5": 0, "1 to 5, one of 20": 20, "1 to 5, one of 50": 50}
"""Sizes of prompts -> pairs of a giant one."""
RESAMPLES = 1000
SKEWS = (0.4, 0.8)
"""Standard deviations of the logarithms of an answer's KL per token and of its length: usual, and extreme."""
Row = dict[str, Any]
Interval = tuple[float, float]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000, help="simulations of each line (bootstrap: a fifth)")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    options = parser.parse_args(argv)
    tables: dict[str, list[Row]] = {}
    for name, simulate in SIMULATIONS.items():
        tables[name] = []
        print(f"\n{name}")
        for row in simulate(options.rounds):
            if not tables[name]:
                print("  ".join(f"{key:>17}" for key in row))
            tables[name].append(row)
            print("  ".join(f"{_text(value):>17}" for value in row.values()), flush=True)
    if options.write:
        content = {"rounds": options.rounds, "resamples": RESAMPLES, "tables": tables}
        print(write_results("coverage", content, packages=PACKAGES, argv=argv))


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Layout:
    """How many pairs each prompt has."""

    name: str
    num: int

    def draw(self, rng: np.random.Generator) -> Prompts:
        sizes = rng.integers(1, 6, self.num)
        sizes[0] = LAYOUTS[self.name] or sizes[0]
        return Prompts(np.repeat(np.arange(self.num), sizes))


def alike(draw: Callable[[int], NDArray[Any]], prompts: Prompts, icc: float, rng: np.random.Generator) -> NDArray[Any]:
    """Draws a value for each pair, so that two pairs of a prompt correlate by `icc`."""
    shared, own = draw(prompts.num)[prompts.numbers], draw(len(prompts))
    return np.where(rng.random(len(prompts)) < sqrt(icc), shared, own)


def simulate_shares(rounds: int) -> Iterator[Row]:
    for layout, icc, truth in _grid(TRUTHS):
        rng = np.random.default_rng(0)
        found: dict[str, list[Interval]] = {"before": [], "after": []}
        for _ in range(rounds):
            prompts = layout.draw(rng)
            hits = alike(lambda n: rng.random(n) < truth, prompts, icc, rng)  # noqa: B023
            found["before"].append(share_before(hits, prompts))
            estimate = share(hits, prompts)
            found["after"].append((estimate.low, estimate.high))
        row: Row = {"prompts": layout.num, "sizes": layout.name, "icc": icc, "truth": truth}
        yield row | {f"held {key}": _held(each, truth) for key, each in found.items()} | _widths(found)


def simulate_changes(rounds: int) -> Iterator[Row]:
    for layout, icc, discordant in _grid(DISCORDANT):
        rng = np.random.default_rng(1)
        told: dict[str, list[bool]] = {}
        for _ in range(rounds):
            prompts = layout.draw(rng)
            chances = [discordant / 2, 1 - discordant, discordant / 2]
            changes = alike(lambda n: rng.choice([-1.0, 0.0, 1.0], n, p=chances), prompts, icc, rng)  # noqa: B023
            first = changes < 0
            second = changes > 0
            now = change_of_share(first, second, prompts)
            before = bootstrap_before(changes, np.ones_like(changes), prompts)
            for key, low, high, p_value in (
                ("before", *before, sign_test_before(int((changes > 0).sum()), int((changes < 0).sum()))),
                ("after", now.estimate.low, now.estimate.high, now.p_value),
            ):
                told.setdefault(f"better {key}", []).append(low > 0)
                told.setdefault(f"worse {key}", []).append(high < 0)
                told.setdefault(f"p<.05 {key}", []).append(p_value < 0.05)
        row: Row = {"prompts": layout.num, "sizes": layout.name, "icc": icc, "discordant": discordant}
        yield row | {key: float(np.mean(told[key])) for key in sorted(told)}


def simulate_unlike(rounds: int) -> Iterator[Row]:
    """Large prompts that differ from small ones: they are harder, or only there do base and tuned disagree."""
    for num, part, size in product((50, 300), (0.05, 0.1), (10, 20)):
        rng = np.random.default_rng(3)
        truth = (part * size * 0.3 + (1 - part) * 0.95) / (part * size + 1 - part)
        held: dict[str, list[Interval]] = {"before": [], "after": []}
        told: dict[str, list[bool]] = {"before": [], "after": []}
        for _ in range(rounds):
            is_large = rng.random(num) < part
            prompts = Prompts(np.repeat(np.arange(num), np.where(is_large, size, 1)))
            large = is_large[prompts.numbers]
            hits = rng.random(len(prompts)) < np.where(large, 0.3, 0.95)
            luck = alike(rng.random, prompts, 0.5, rng)
            chance = np.where(large, 0.3, 0.02)
            changes = np.where(luck < chance / 2, 1.0, np.where(luck < chance, -1.0, 0.0))
            estimate, now = share(hits, prompts), change_of_share(changes < 0, changes > 0, prompts).estimate
            held["before"].append(share_before(hits, prompts))
            held["after"].append((estimate.low, estimate.high))
            low, high = bootstrap_before(changes, np.ones_like(changes), prompts)
            told["before"].append(low > 0 or high < 0)
            told["after"].append(now.low > 0 or now.high < 0)
        row: Row = {"prompts": num, "large": f"{part:.0%} of {size}"}
        row |= {f"held {key}": _held(each, truth) for key, each in held.items()}
        yield row | {f"told apart {key}": float(np.mean(each)) for key, each in told.items()}


def simulate_means(rounds: int) -> Iterator[Row]:
    layouts = (Layout("1 each", 32), *(Layout("1 to 5", num) for num in NUMS), Layout("1 to 5, one of 50", 300))
    for layout, kind, skew in product(layouts, ("ratio", "mean"), SKEWS):
        rng = np.random.default_rng(2)
        found: dict[str, list[Interval]] = {"before": [], "after": []}
        for number in range(max(rounds // 5, 1)):
            prompts = Prompts.all_different(layout.num) if layout.name == "1 each" else layout.draw(rng)
            tops = alike(lambda n: rng.lognormal(-(skew**2) / 2, skew, n), prompts, 0.5, rng)  # noqa: B023
            bottoms = rng.lognormal(4, skew, len(tops)) if kind == "ratio" else np.ones_like(tops)
            tops = tops * bottoms
            found["before"].append(bootstrap_before(tops, bottoms, prompts))
            estimate = Bootstrap(RESAMPLES, seed=number).ratio(tops, bottoms, prompts)
            found["after"].append((estimate.low, estimate.high))
        row: Row = {"prompts": layout.num, "sizes": layout.name, "of": kind, "skew": skew}
        yield row | {f"held {key}": _held(each, 1.0) for key, each in found.items()} | _widths(found)


def _grid(values: tuple[float, ...]) -> Iterator[tuple[Layout, float, float]]:
    return ((Layout(name, num), icc, value) for name in LAYOUTS for num in NUMS for icc in ICCS for value in values)


def _held(intervals: list[Interval], truth: float) -> float | None:
    """Share of the intervals that hold the truth; None where there is no interval in most rounds."""
    known = [low <= truth <= high for low, high in intervals if low == low]
    return float(np.mean(known)) if len(known) > len(intervals) / 2 else None


def _widths(found: dict[str, list[Interval]]) -> Row:
    return {
        f"width {key}": float(np.mean(known)) if (known := [high - low for low, high in each if low == low]) else None
        for key, each in found.items()
    }


def share_before(hits: NDArray[np.bool_], prompts: Prompts) -> Interval:
    """As of 1b0ce4e: Wilson's interval for as many trials as there are prompts."""
    return wilson(float(hits.mean()) * prompts.num, prompts.num)


def bootstrap_before(tops: NDArray[Any], bottoms: NDArray[Any], prompts: Prompts) -> Interval:
    """As of 1b0ce4e: percentiles of the resampled ratio."""
    rng = np.random.default_rng(0)
    a, b = prompts.sums(tops), prompts.sums(bottoms)
    drawn = rng.integers(0, len(a), size=(RESAMPLES, len(a)))
    low, high = np.percentile(a[drawn].sum(axis=1) / b[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def sign_test_before(wins: int, losses: int) -> float:
    """As of 1b0ce4e: the sign test on pairs, as if those of a prompt were independent."""
    n = wins + losses
    if n > 2000:
        return erfc((abs(wins - losses) - 1) / sqrt(2 * n))
    return min(1.0, float(2 * sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)) if n else 1.0


SIMULATIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "shares": simulate_shares,
    "changes": simulate_changes,
    "large prompts": simulate_unlike,
    "means": simulate_means,
    "sweeps": simulate_sweeps,
}

if __name__ == "__main__":
    main(sys.argv[1:])
