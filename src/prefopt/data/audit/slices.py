"""What the other checks have found in each source of a mixture and each tag: one bad file may hide among good ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import CheckName
from prefopt.data.audit.check import Check, Chunk, Found, Sides
from prefopt.data.intervals import wilson
from prefopt.data.tags import fold_tags

UNEVEN = 2.0
"""A finding is uneven if its share in a source is as many times that in the others, and their intervals are apart."""
MIN_COUNT = 5
"""Of fewer rows in a source nothing is concluded: chance puts them somewhere."""
MAX_TOLD = 3
"""Uneven findings that the summary names."""
MAX_SLICES = 50
"""Sources in `values`, the largest first."""
SAMPLING = (CheckName.language, CheckName.label_noise)
"""Checks that look at a sample of many rows, in which the sources have other shares than among the rows."""
ONE_SOURCE = (
    "the training rows come from one source; it compares the files or the parts of data.train, and the values of a "
    "column with data.tag=<column>"
)
Numbered = tuple[list[str], NDArray[np.int32]]
"""Names, and for each row the place of its own among them, shape (rows,)."""
Mask = NDArray[np.bool_]


class Seen(NamedTuple):
    """The sources and the tags of some rows."""

    sources: Numbered
    tags: Numbered


@dataclass(frozen=True)
class Grouping:
    """The training rows by source, or by tag.

    Attributes:
        word: What a group is: `source` or `tag`.
        names: Names of the groups.
        of_row: For each row the number of its group, shape (rows,).
        sizes: Rows of each group.
        counts: For each check that has found something: how many rows of each group it has found.
        uneven: Checks and groups in which they have found much more than in the others, the worst first.
    """

    word: str
    names: list[str]
    of_row: NDArray[np.int64]
    sizes: NDArray[np.int64]
    counts: dict[CheckName, NDArray[np.int64]]
    uneven: list[tuple[CheckName, int]]

    @classmethod
    def of(cls, word: str, names: Sequence[str], found: Mapping[CheckName, Mask]) -> "Grouping":
        """Groups rows by the name of the group of each."""
        numbers: dict[str, int] = {}
        of_row = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
        sizes = np.bincount(of_row, minlength=len(numbers))
        counts = {
            name: np.bincount(of_row[mask], minlength=len(numbers)) for name, mask in found.items() if mask.any()
        }
        uneven = [
            (name, number)
            for name, count in counts.items()
            for number in range(len(numbers))
            if _is_uneven(count, sizes, number)
        ]
        uneven.sort(key=lambda each: -float(counts[each[0]][each[1]] / sizes[each[1]]))
        return cls(word, [*numbers], of_row, sizes, counts, uneven)

    def summary(self) -> str:
        """Returns how many groups there are, and the worst of what is uneven in them."""
        told = [
            _tell(name, self.names[number], self.counts[name], self.sizes, number)
            for name, number in self.uneven[:MAX_TOLD]
        ]
        largest = f"the largest has {self.sizes.max() / len(self.of_row):.1%} of the training rows"
        nothing = "no finding is much more frequent in one than in the others"
        return f"{len(self.names)} {self.word}s, {largest}; {'; '.join(told) or nothing}"

    def values(self) -> dict[str, Any]:
        """Returns the groups, the largest first, as they are written."""
        order = np.argsort(-self.sizes, kind="stable")[:MAX_SLICES].tolist()
        described = [_describe(self.names[number], number, self.counts, self.sizes) for number in order]
        return {f"{self.word}s": described, f"num_{self.word}s": len(self.names)}


def number_groups(chunk: Chunk) -> Seen:
    """Returns the sources and the tags of the rows."""
    return Seen(
        _number(record.slice or record.source.rpartition(":")[0] for record in chunk.records),
        _number(record.tag for record in chunk.records),
    )


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found | str:
    """Returns the rows of findings that are much more frequent in one source, or with one tag, than in the others."""
    train = [found for split, _, found in seen if split == "train"]
    sources = _join(each.sources for each in train)
    tags = _join(each.tags for each in train)
    grouped = {word: names for word, names in (("source", sources), ("tag", fold_tags(tags))) if len(set(names)) > 1}
    if not grouped:
        return ONE_SOURCE
    num_rows = len(sources)
    found = {name: _mask(each, num_rows) for name, each in sides.found.items() if _is_whole(name, each, sides)}
    groupings = [Grouping.of(word, names, found) for word, names in grouped.items()]
    rows = np.zeros(num_rows, bool)
    for each in groupings:
        for name, number in each.uneven:
            rows |= found[name] & (each.of_row == number)
    places = {"train": np.flatnonzero(rows)}
    words = " or ".join(each.word for each in groupings if each.uneven)
    return Found(
        rows=places,
        num_rows=num_rows,
        share=float(rows.mean()),
        summary="; ".join(each.summary() for each in groupings),
        remedy=f"Mend that {words}, leave it out, or give it a lower weight (the parts of data.train have weights)."
        if words
        else "",
        examples=sides.examples(places),
        values={
            **{key: value for each in groupings for key, value in each.values().items()},
            "uneven": [
                {"check": name.value, each.word: each.names[number]}
                for each in groupings
                for name, number in each.uneven
            ],
        },
    )


def _number(names: Iterable[str]) -> Numbered:
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(name, len(numbers)) for name in names]
    return [*numbers], np.array(places, np.int32)


def _join(parts: Iterable[Numbered]) -> list[str]:
    """Returns the name of each row."""
    return [names[number] for names, numbers in parts for number in numbers.tolist()]


def _is_whole(name: CheckName, found: Found, sides: Sides) -> bool:
    return name not in SAMPLING or found.num_rows >= sides.num_rows


def _mask(found: Found, num_rows: int) -> Mask:
    mask = np.zeros(num_rows, bool)
    mask[found.rows.get("train", np.empty(0, np.int64))] = True
    return mask


def _is_uneven(count: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> bool:
    own, others = int(count[number]), int(count.sum() - count[number])
    low, _ = wilson(own, int(sizes[number]))
    _, high = wilson(others, int(sizes.sum() - sizes[number]))
    is_frequent = own / sizes[number] >= UNEVEN * _share_of_others(count, sizes, number)
    return own >= MIN_COUNT and low > high and bool(is_frequent)


def _share_of_others(count: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> float:
    return float((count.sum() - count[number]) / (sizes.sum() - sizes[number]))


def _tell(name: CheckName, source: str, count: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> str:
    others = _share_of_others(count, sizes, number)
    return f"{name.value} is in {count[number] / sizes[number]:.1%} of {source}, in {others:.1%} of the others"


def _describe(
    name: str, number: int, counts: Mapping[CheckName, NDArray[np.int64]], sizes: NDArray[np.int64]
) -> dict[str, Any]:
    shares = {check.value: float(count[number] / sizes[number]) for check, count in counts.items()}
    return {"name": name, "rows": int(sizes[number]), "findings": shares}


CHECK = Check(examine=number_groups, conclude=conclude)
