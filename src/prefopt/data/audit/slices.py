"""What the other checks have found in each source of a mixture: one bad file should not hide among good ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import CheckName
from prefopt.data.audit.check import Check, Chunk, Found, Sides
from prefopt.data.intervals import wilson

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
ONE_SOURCE = "the training rows come from one source; it compares the files or the parts of data.train"
Seen = tuple[list[str], NDArray[np.int32]]
Mask = NDArray[np.bool_]


def number_sources(chunk: Chunk) -> Seen:
    """Returns the sources of the rows, and for each row the place of its own among them, shape (rows,)."""
    names: dict[str, int] = {}
    numbers = [
        names.setdefault(record.slice or record.source.rpartition(":")[0], len(names)) for record in chunk.records
    ]
    return [*names], np.array(numbers, np.int32)


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found | str:
    """Returns the rows of findings that are much more frequent in one source than in the others."""
    names: dict[str, int] = {}
    parts = []
    for _, _, (own, numbers) in (each for each in seen if each[0] == "train"):
        parts.append(np.array([names.setdefault(name, len(names)) for name in own], np.int32)[numbers])
    if len(names) < 2:
        return ONE_SOURCE
    source_of = np.concatenate(parts)
    sizes = np.bincount(source_of, minlength=len(names))
    found = {name: _mask(each, len(source_of)) for name, each in sides.found.items() if _is_whole(name, each, sides)}
    counts = {name: np.bincount(source_of[mask], minlength=len(names)) for name, mask in found.items() if mask.any()}
    uneven = sorted(
        (
            (name, number)
            for name, count in counts.items()
            for number in range(len(names))
            if _is_uneven(count, sizes, number)
        ),
        key=lambda each: -float(counts[each[0]][each[1]] / sizes[each[1]]),
    )
    rows = np.zeros(len(source_of), bool)
    for name, number in uneven:
        rows |= found[name] & (source_of == number)
    order = np.argsort(-sizes, kind="stable")[:MAX_SLICES].tolist()
    listed = [*names]
    places = {"train": np.flatnonzero(rows)}
    told = "; ".join(_tell(name, listed[number], counts[name], sizes, number) for name, number in uneven[:MAX_TOLD])
    return Found(
        rows=places,
        num_rows=len(source_of),
        share=float(rows.mean()),
        summary=f"{len(names)} sources, the largest has {sizes.max() / len(source_of):.1%} of the training rows; "
        + (told or "no finding is much more frequent in one than in the others"),
        remedy="Mend that source, leave it out, or give it a lower weight (the parts of data.train have weights)."
        if uneven
        else "",
        examples=sides.examples(places),
        values={
            "sources": [_describe(listed[number], number, counts, sizes) for number in order],
            "num_sources": len(names),
            "uneven": [{"check": name.value, "source": listed[number]} for name, number in uneven],
        },
    )


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
    source: str, number: int, counts: Mapping[CheckName, NDArray[np.int64]], sizes: NDArray[np.int64]
) -> dict[str, Any]:
    shares = {name.value: float(count[number] / sizes[number]) for name, count in counts.items()}
    return {"name": source, "rows": int(sizes[number]), "findings": shares}


CHECK = Check(examine=number_sources, conclude=conclude)
