"""Parts of the held-out prompts in which a model may be worse: by source, tag, topic, length, script.

Whoever looks at twenty parts finds a bad one by chance. So the worst is named only if it is worse than the rest by
more than chance explains for the worst of all parts: prompts are shuffled over the parts, and what the worst of them
reaches in fewer than 1 of 20 shuffles is taken for real (max-T, Westfall and Young 1993). Parts that overlap, such as
a topic whose prompts are all long, need no further care, since they are shuffled together.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.tags import fold_tags
from prefopt.evaluation.statistics import Estimate, Floats, difference, share

FEWEST_PROMPTS = 10
"""Prompts of a slice below which it is shown, but never named."""
LEVEL = 0.05
DRAWS, BLOCK = 5_000, 250
"""Number of shuffles, and how many are drawn at once: this bounds the memory."""
IMAGINED = 2.0
"""Imagined prompts with the variance of all, by which a slice's own variance is steadied."""
MAX_LETTERS = 200
"""Letters of a prompt by which its script is told."""


@dataclass(frozen=True)
class Slice:
    """A part of the prompts.

    Attributes:
        grouping: What the prompts are grouped by, such as `topic`.
        name: Which group it is.
        rate: Share of truths, or win rate (ties count half), with its own 95 % interval, as if it were the only slice.
        gap: The rate less that of all other prompts.
        p_value: Chance that the worst slice is as much worse than the rest if no slice is; None if the slice is too
            small to be named.
    """

    grouping: str
    name: str
    rate: Estimate
    gap: Estimate
    p_value: float | None

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than the rest by more than chance, with all slices looked at."""
        return self.p_value is not None and self.p_value <= LEVEL

    def to_dict(self) -> dict[str, Any]:
        return {
            "grouping": self.grouping,
            "name": self.name,
            "rate": self.rate.to_dict(),
            "gap": self.gap.to_dict(),
            "p_value": self.p_value,
            "is_worse": self.is_worse,
        }


@dataclass(frozen=True)
class Slices:
    """All slices of some outcomes.

    Attributes:
        found: Each grouping's slices, the lowest rate first.
        num_without_outcome: Prompts that were left out, since they have none.
    """

    found: tuple[Slice, ...]
    num_without_outcome: int

    @property
    def worst(self) -> Slice | None:
        """The slice that is worse than the rest, of several the one that is so most surely; None if there is none."""
        worse = [each for each in self.found if each.is_worse]
        return min(worse, key=lambda each: (each.p_value, each.gap.value), default=None)

    def to_dict(self) -> dict[str, Any]:
        worst = self.worst
        return {
            "slices": [each.to_dict() for each in self.found],
            "worst": None if worst is None else {"grouping": worst.grouping, "name": worst.name},
            "num_without_outcome": self.num_without_outcome,
        }


def as_rates(verdicts: Floats) -> Floats:
    """Returns verdicts (1 won, 0 tied, -1 lost, NaN none) as numbers whose mean is the win rate: ties count half."""
    return np.asarray((verdicts + 1) / 2)


def find_slices(rates: NDArray[np.bool_] | Floats, groupings: Mapping[str, Sequence[str]], seed: int = 0) -> Slices:
    """Compares the parts of the prompts, and says which are worse than the rest.

    Args:
        rates: Of each prompt, shape (prompts,): truths, or numbers in [0, 1], such as those of `as_rates`; NaN where
            there is none. Prompts are taken as independent: give the mean of a prompt with several outcomes.
        groupings: What the prompts are grouped by -> the group of each prompt. A grouping with a single group is left
            out, and the smallest groups of one with many are put together.
        seed: Of the shuffles.
    """
    num, is_known = len(rates), np.isfinite(rates)
    values = np.asarray(rates, float)[is_known]
    assert ((values >= 0) & (values <= 1)).all(), "rates are in [0, 1]; as_rates makes them of verdicts"
    parts: list[tuple[str, str, NDArray[np.bool_]]] = []
    for grouping, names in groupings.items():
        assert len(names) == num, f"{grouping} names the group of each prompt"
        folded = fold_tags([name for name, known in zip(names, is_known, strict=True) if known])
        groups = dict.fromkeys(folded)
        parts += [(grouping, name, are_equal(folded, name)) for name in groups if len(groups) > 1]
    if not parts:
        return Slices((), int((~is_known).sum()))
    members = np.stack([mask for _, _, mask in parts])
    p_values = _p_values(values, members, seed)
    found = [
        _slice(grouping, name, values, mask, p_value)
        for (grouping, name, mask), p_value in zip(parts, p_values, strict=True)
    ]
    order = list(groupings)
    found.sort(key=lambda each: (order.index(each.grouping), each.rate.value, each.name))
    return Slices(tuple(found), int((~is_known).sum()))


def are_equal(names: Sequence[str], name: str) -> NDArray[np.bool_]:
    """Returns which names are this one, shape (names,); numpy's own comparison leaves out a NUL at the end."""
    return np.array([each == name for each in names], bool)


def _slice(grouping: str, name: str, rates: Floats, mask: NDArray[np.bool_], p_value: float | None) -> Slice:
    inside, outside = share(rates[mask]), share(rates[~mask])
    gap = difference(inside, outside)
    return Slice(grouping, name, inside, Estimate(gap.value, gap.low, gap.high, inside.n, inside.num_prompts), p_value)


def _p_values(rates: Floats, members: NDArray[np.bool_], seed: int) -> list[float | None]:
    """Returns the adjusted p-value of each slice, one-sided for a lower rate; None for those that are too small.

    Args:
        rates: Of the prompts, in [0, 1], shape (prompts,).
        members: Which prompts a slice has, shape (slices, prompts).
        seed: Of the shuffles.
    """
    sizes = members.sum(axis=1)
    may_be_named = (sizes >= FEWEST_PROMPTS) & (sizes < len(rates))
    if not may_be_named.any() or rates.var() == 0:
        return [1.0 if may else None for may in may_be_named]
    tested = members[may_be_named].astype(float)
    seen = _scores(rates[None], tested)[0]
    rng, reached = np.random.default_rng(seed), np.ones(len(seen))
    for _ in range(0, DRAWS, BLOCK):
        shuffled = rng.permuted(np.broadcast_to(rates, (BLOCK, len(rates))), axis=1)
        worst = _scores(shuffled, tested).max(axis=1)
        reached += (worst[:, None] >= seen - 1e-9).sum(axis=0)
    adjusted = iter((reached / (DRAWS + 1)).tolist())
    return [next(adjusted) if may else None for may in may_be_named]


def _scores(rates: Floats, members: Floats) -> Floats:
    """Returns by how many standard errors each slice is below the rest, shape (draws, slices).

    Each side has a variance of its own: a slice with few ties is not taken for a bad one. It is steadied by `IMAGINED`
    prompts, so that a small slice in which all is lost is not infinitely far away.
    """
    num, sizes = rates.shape[1], members.sum(axis=1)
    totals, squares = rates.sum(axis=1, keepdims=True), (rates**2).sum(axis=1, keepdims=True)
    common = squares / num - (totals / num) ** 2

    def mean_and_error(sums: Floats, of_squares: Floats, n: Floats) -> tuple[Floats, Floats]:
        means = sums / n
        variances = (n * np.maximum(of_squares / n - means**2, 0.0) + IMAGINED * common) / (n - 1 + IMAGINED)
        return means, variances / n

    sums, of_squares = rates @ members.T, rates**2 @ members.T
    inside, error = mean_and_error(sums, of_squares, sizes)
    outside, error_outside = mean_and_error(totals - sums, squares - of_squares, num - sizes)
    return np.asarray((outside - inside) / np.sqrt(error + error_outside))


def by_length(prompts: Sequence[str]) -> list[str]:
    """Groups prompts by quarters of their lengths in characters: `12 to 40 characters`; equal lengths are together."""
    lengths = np.array([len(prompt) for prompt in prompts])
    if not len(lengths):
        return []
    bounds = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    places = np.searchsorted(bounds, lengths, side="left")
    names = {
        place: _name_lengths(int(lengths[places == place].min()), int(lengths[places == place].max()))
        for place in np.unique(places).tolist()
    }
    return [names[place] for place in places.tolist()]


def _name_lengths(least: int, most: int) -> str:
    """Returns the name of a group of lengths: `12 to 40 characters`, `41 characters`."""
    if least == most:
        return "1 character" if least == 1 else f"{least} characters"
    return f"{least} to {most} characters"


def by_script(texts: Sequence[str]) -> list[str]:
    """Groups texts by the script of most of their letters: `Latin`, `Cyrillic`, `Cjk`, ...; `(none)` without any."""
    found = []
    for text in texts:
        letters = [letter for letter in text[: 10 * MAX_LETTERS] if letter.isalpha()][:MAX_LETTERS]
        counts = Counter(map(_script, letters))
        found.append(counts.most_common(1)[0][0] if counts else "(none)")
    return found


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    """Returns the first word of a letter's name in Unicode, which is its script."""
    return unicodedata.name(letter, "Unknown").split()[0].capitalize()
