"""Pairs whose two answers are almost the same: training them pushes the chosen answer's probability down.

Almost the same: the sets of their character trigrams have a Jaccard index above `LIMIT`. Counting trigrams in Python
takes 20 times as long as all other checks of a pair, so a sketch of both sets (every 16th trigram by its hash) decides
which pairs are counted.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, Example, Found, Sides, Texts, by_split, say
from prefopt.data.defects import is_identical

LIMIT = 0.8
SAMPLED_BITS = 4
"""One of 2^4 trigrams is in a sketch."""
FEW = 16
"""Up to so many trigrams in both sketches together, they decide nothing."""
CLEAR = 0.4
"""Index of two sketches below which the texts differ: with more than `FEW` trigrams in them, one that is 0.8 of the
whole texts comes out so low once in 10,000 pairs."""
MAX_LETTERS = 2_000_000
"""Letters whose trigrams are numbers in memory at the same time, about 50 bytes each."""

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def find_near_identical(chunk: Chunk) -> tuple[Rows, NDArray[np.float64]]:
    """Returns the rows whose sides are almost the same and not identical, and the Jaccard index of each."""
    found, indices = [], []
    for row in _candidates(chunk.chosen, chunk.rejected):
        index = jaccard(chunk.chosen.each[row], chunk.rejected.each[row])
        if index > LIMIT and not is_identical(chunk.records[row]):
            found.append(chunk.start + row)
            indices.append(index)
    return np.array(found, np.int64), np.array(indices, np.float64)


def jaccard(first: str, second: str) -> float:
    """Returns the Jaccard index of the sets of character trigrams of two texts; of texts without any, 0."""
    one, two = (set(zip(text, text[1:], text[2:], strict=False)) for text in (first.strip(), second.strip()))
    return len(one & two) / len(one | two) if one or two else 0.0


def _candidates(chosen: Texts, rejected: Texts) -> Iterator[int]:
    """Yields the rows, in order, whose sketches do not tell that the texts differ."""
    letters = np.cumsum(chosen.lengths + rejected.lengths)
    start = 0
    while start < len(letters):
        before = letters[start - 1] if start else 0
        end = max(int(np.searchsorted(letters, before + MAX_LETTERS)), start + 1)
        sketches = [_sketch(texts.each[start:end]) for texts in (chosen, rejected)]
        both = np.sort(np.concatenate(sketches))
        common = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(40)).astype(np.int64), minlength=end - start)
        union = np.bincount((both >> np.uint64(40)).astype(np.int64), minlength=end - start) - common
        yield from (start + row for row in np.flatnonzero((union <= FEW) | (common >= CLEAR * union)).tolist())
        start = end


def _sketch(texts: Sequence[str]) -> Hashes:
    """Returns, sorted and each once, the row of a sampled trigram (24 bits) and its hash (40 bits)."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(letters) < 3:
        return np.empty(0, np.uint64)
    grams = letters[:-2] | letters[1:-1] << np.uint64(21) | letters[2:] << np.uint64(42)
    grams *= np.uint64(0x9E3779B97F4A7C15)
    grams ^= grams >> np.uint64(29)
    grams *= np.uint64(0xBF58476D1CE4E5B9)
    at = np.flatnonzero(grams >> np.uint64(64 - SAMPLED_BITS) == 0)
    ends = np.cumsum(lengths)
    rows = np.searchsorted(ends, at, side="right")
    inside = at + 2 < ends[rows]
    hashed = (grams[at[inside]] << np.uint64(SAMPLED_BITS)) >> np.uint64(24)
    return np.unique(rows[inside].astype(np.uint64) << np.uint64(40) | hashed)


def conclude(seen: Sequence[tuple[str, int, tuple[Rows, NDArray[np.float64]]]], sides: Sides) -> Found:
    rows = by_split([(split, found) for split, _, (found, _) in seen])
    likest = sorted(
        ((-index, split, row) for split, _, found in seen for row, index in zip(*map(np.ndarray.tolist, found))),
    )
    count = len(likest)
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{say(count, 'pair')} whose answers are almost the same",
        remedy="Look at them: where only a detail differs, training lowers the chosen answer's probability too.",
        examples=[
            Example(source=sides.source(split, row), detail=f"{-index:.0%} of their trigrams in common")
            for index, split, row in likest[:5]
        ],
    )


CHECK = Check(kinds=("preference",), examine=find_near_identical, conclude=conclude)
