"""Rows of a split that differ from another in a few words only: they weigh twice, and say nothing new."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit import minhash
from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, say
from prefopt.data.audit.words import split_words
from prefopt.data.records import Record

SIMILAR_ANSWERS = 0.5
"""Jaccard index that each answer must have as well: several pairs of one long prompt are no duplicates."""


@dataclass(frozen=True)
class Sketches:
    """What is kept of a chunk.

    Attributes:
        keys: Band keys of each row's texts together, shape (rows, bands).
        digests: A digest of each row's texts and tools; 0 for rows of few words.
    """

    keys: NDArray[np.uint32]
    digests: NDArray[np.uint64]


def examine(chunk: Chunk) -> Sketches:
    """Returns the sketches of the rows."""
    texts = ["\n".join(sides) for sides in _rows(chunk)]
    digests = [_digest(text, record) for text, record in zip(texts, chunk.records, strict=True)]
    return Sketches(minhash.band_keys([text.lower() for text in texts]), np.array(digests, np.uint64))


def _rows(chunk: Chunk) -> list[tuple[str, str, str]]:
    return list(zip(chunk.prompts.each, chunk.chosen.each, chunk.rejected.each, strict=True))


def _digest(text: str, record: Record) -> int:
    if len(text) < 2 * minhash.MIN_WORDS or len(split_words(text[:1000])) < minhash.MIN_WORDS:
        return 0
    tools = repr(record.tools) if record.tools else ""
    return int.from_bytes(hashlib.blake2b((text + tools).encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclass
class Groups:
    """Rows that are joined, directly or through others."""

    parents: dict[int, int]

    def first(self, row: int) -> int:
        """Returns the first row of the row's group."""
        while row != (parent := self.parents.get(row, row)):
            row = parent
        return row

    def join(self, one: int, other: int) -> None:
        small, large = sorted((self.first(one), self.first(other)))
        if small != large:
            self.parents[large] = small


def conclude(seen: Sequence[tuple[str, int, Sketches]], sides: Sides) -> Found:
    """Returns the rows beyond the first of each group of near-duplicates; equal rows are another check's."""
    rows: dict[str, NDArray[np.int64]] = {}
    examples: list[Example] = []
    num_groups = num_uncompared = 0
    sizes: Counter[int] = Counter()
    for split in dict.fromkeys(split for split, _, _ in seen):
        keys = np.concatenate([sketches.keys for name, _, sketches in seen if name == split])
        digests = np.concatenate([sketches.digests for name, _, sketches in seen if name == split])
        groups, found, uncompared = _group(split, keys, digests, sides)
        num_uncompared += uncompared
        members = Counter(groups.first(row) for row in groups.parents)
        num_groups += len(members)
        sizes.update(1 + num_further for num_further in members.values())
        rows[split] = np.array(sorted(groups.parents), np.int64)
        examples += found
    count = sum(map(len, rows.values()))
    num_rows = sides.num_rows
    trusted = f"; {say(num_uncompared, 'pair')} of rows were judged by their sketches alone" if num_uncompared else ""
    return Found(
        rows=rows,
        num_rows=num_rows,
        share=count / max(1, num_rows),
        summary=f"{say(count, 'row repeats', 'rows repeat')} another in nearly the same words "
        f"({say(num_groups, 'group')}, of {say(num_rows, 'row')}){trusted}"
        if count
        else "no row repeats another in nearly the same words",
        remedy="Keep one row of each group (prefopt audit --fix --near), unless they are meant to weigh more."
        if count
        else "",
        examples=examples[:MAX_EXAMPLES],
        values={
            "groups": num_groups,
            "uncompared": num_uncompared,
            "group_sizes": {str(size): sizes[size] for size in sorted(sizes)},
        },
    )


def _group(
    split: str, keys: NDArray[np.uint32], digests: NDArray[np.uint64], sides: Sides
) -> tuple[Groups, list[Example], int]:
    """Returns the groups of a split, examples, and how many pairs were joined without comparing their words."""
    distinct, places = np.unique(digests, return_index=True)
    places = np.sort(places[distinct != 0])
    groups = Groups({})
    if len(places) < 2:
        return groups, [], 0
    keys = keys[places]
    pairs = minhash.pairs_within(keys)
    num_equal = minhash.num_equal_bands(pairs, keys, keys)
    examples: list[Example] = []
    num_compared = num_uncompared = 0
    for (one, other), num_bands in zip(places[pairs].tolist(), num_equal.tolist(), strict=True):
        if groups.first(one) == groups.first(other):
            continue
        if num_compared == minhash.MAX_COMPARED:
            if num_bands >= minhash.MIN_BANDS:
                groups.join(one, other)
                num_uncompared += 1
            continue
        num_compared += 1
        similarity = _compare(sides.records[split][one], sides.records[split][other])
        if similarity >= minhash.SIMILAR:
            groups.join(one, other)
            if len(examples) < MAX_EXAMPLES:
                examples.append(_show(split, one, other, similarity, sides))
    return groups, examples, num_uncompared


def _compare(one: Record, other: Record) -> float:
    """Returns the Jaccard index of two rows, whatever the case of their letters; 0 if an answer differs too much."""
    ones, others = (
        [text.lower() for text in _rows(Chunk(split="", start=0, records=[record]))[0]] for record in (one, other)
    )
    if any(minhash.jaccard(*answers) < SIMILAR_ANSWERS for answers in zip(ones[1:], others[1:], strict=True)):
        return 0.0
    return minhash.jaccard("\n".join(ones), "\n".join(others))


def _show(split: str, one: int, other: int, similarity: float, sides: Sides) -> Example:
    detail = f"has {similarity:.0%} of its words in common with {sides.source(split, one)}"
    return Example(source=sides.source(split, other), detail=detail, text=sides.show_answer(split, other))


CHECK = Check(examine=examine, conclude=conclude, needs="rensa", is_slow=True)
