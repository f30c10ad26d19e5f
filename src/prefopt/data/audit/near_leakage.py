"""Held-out prompts that training prompts nearly repeat, or cover piece by piece: they measure what was learned."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit import minhash
from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides
from prefopt.data.audit.words import distinct, hash_runs, hash_words, split_words

N = 8
"""Words of a piece."""
COVERED = 0.5
"""Share of a prompt's pieces in training prompts, above which it has leaked."""


@dataclass(frozen=True)
class Prompts:
    """What is kept of the prompts of a chunk.

    Attributes:
        keys: Band keys of what the user says, shape (rows, bands).
        digests: A digest of each whole prompt, shape (rows,).
        pieces: Hashes of runs of eight words; of training rows each once. Four bytes a word: one of a hundred would be
            mistaken for another among 40 million.
        owners: The row of each piece, counted from 0 within the chunk; empty for training rows.
    """

    keys: NDArray[np.uint32]
    digests: NDArray[np.uint64]
    pieces: NDArray[np.uint32]
    owners: NDArray[np.int32]


def questions(chunk: Chunk) -> list[str]:
    """Returns what the user says, in lower case; of a row that has no prompt its text."""
    return [(asked or text).lower() for asked, text in zip(chunk.questions.each, chunk.chosen.each, strict=True)]


def examine(chunk: Chunk) -> Prompts:
    """Returns the sketches and pieces of the prompts."""
    asked = questions(chunk)
    hashes, owners = hash_runs(*hash_words([split_words(text) for text in asked]), N)
    pieces = (hashes >> np.uint64(32)).astype(np.uint32)
    if chunk.split == "train":
        pieces, owners = distinct(pieces), owners[:0]
    whole = [text or answer for text, answer in zip(chunk.prompts.each, chunk.chosen.each, strict=True)]
    digests = np.array([_digest(text) for text in whole], np.uint64)
    return Prompts(minhash.band_keys(asked), digests, pieces, owners.astype(np.int32))


def _digest(text: str) -> int:
    plain = " ".join(text.split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big")


def conclude(seen: Sequence[tuple[str, int, Prompts]], sides: Sides) -> Found | None:
    """Returns the rows of other splits whose prompt is nearly that of a training row; equal ones are not counted."""
    trained = [prompts for split, _, prompts in seen if split == "train"]
    others = [(split, start, prompts) for split, start, prompts in seen if split != "train"]
    if not trained or not others:
        return None
    leaks, num_uncompared = _near(trained, others, sides)
    pieces = distinct(np.concatenate([prompts.pieces for prompts in trained]))
    for split, start, prompts in others:
        for row, share in _covered(prompts, pieces):
            leaks.setdefault(
                (split, start + row), f"{share:.0%} of its sequences of {N} words also stand in training prompts"
            )
    trained_digests = np.concatenate([prompts.digests for prompts in trained])
    for split, start, prompts in others:
        for row in np.flatnonzero(np.isin(prompts.digests, trained_digests)).tolist():
            leaks.pop((split, start + row), None)
    names = dict.fromkeys(split for split, _, _ in others)
    rows = {name: np.array(sorted(row for split, row in leaks if split == name), np.int64) for name in names}
    num_rows = sum(len(prompts.digests) for _, _, prompts in others)
    trusted = f"; {num_uncompared} were judged by their sketches alone" if num_uncompared else ""
    return Found(
        rows=rows,
        num_rows=num_rows,
        share=len(leaks) / max(1, num_rows),
        summary=f"{len(leaks):,} of {num_rows:,} prompts outside the training rows nearly "
        f"{'repeats' if len(leaks) == 1 else 'repeat'} training prompts{trusted}"
        if leaks
        else "no other prompt nearly repeats a training prompt",
        remedy="Hold out other prompts, or drop these rows on one side (prefopt audit --fix --near)." if leaks else "",
        examples=[_show(place, detail, sides) for place, detail in sorted(leaks.items())[:MAX_EXAMPLES]],
        values={"by_split": {name: len(found) for name, found in rows.items()}, "uncompared": num_uncompared},
    )


def _near(
    trained: Sequence[Prompts], others: Sequence[tuple[str, int, Prompts]], sides: Sides
) -> tuple[dict[tuple[str, int], str], int]:
    """Returns the prompts that have most of their words in common with a training prompt.

    Returns:
        By split and row, what is to be said of them; and how many were judged without comparing their words.
    """
    places = [(split, start + row) for split, start, prompts in others for row in range(len(prompts.digests))]
    keys = np.concatenate([prompts.keys for prompts in trained])
    other_keys = np.concatenate([prompts.keys for _, _, prompts in others])
    pairs = minhash.pairs_between(keys, other_keys)
    num_equal = minhash.num_equal_bands(pairs, keys, other_keys)
    leaks: dict[tuple[str, int], str] = {}
    num_compared = num_uncompared = 0
    for (row, other), num_bands in zip(pairs.tolist(), num_equal.tolist(), strict=True):
        place = places[other]
        if place in leaks or len(split_words(asked := _question(place, sides))) < minhash.MIN_WORDS:
            continue
        if num_compared == minhash.MAX_COMPARED:
            if num_bands >= minhash.MIN_BANDS:
                leaks[place] = f"seems to have most of its words in common with {sides.source('train', row)}"
                num_uncompared += 1
            continue
        num_compared += 1
        similarity = minhash.jaccard(asked, _question(("train", row), sides))
        if similarity >= minhash.SIMILAR:
            leaks[place] = f"has {similarity:.0%} of its words in common with {sides.source('train', row)}"
    return leaks, num_uncompared


def _covered(prompts: Prompts, trained: NDArray[np.uint32]) -> list[tuple[int, float]]:
    """Returns the rows of a chunk that are covered, each with the share of its pieces among those that are trained."""
    num_rows = len(prompts.digests)
    if not len(trained):
        return []
    found = trained[np.minimum(np.searchsorted(trained, prompts.pieces), len(trained) - 1)] == prompts.pieces
    totals = np.bincount(prompts.owners, minlength=num_rows)
    shares = np.bincount(prompts.owners, weights=found, minlength=num_rows) / np.maximum(totals, 1)
    return [(row, float(shares[row])) for row in np.flatnonzero(shares > COVERED).tolist()]


def _question(place: tuple[str, int], sides: Sides) -> str:
    split, row = place
    return questions(Chunk(split=split, start=row, records=[sides.records[split][row]]))[0]


def _show(place: tuple[str, int], detail: str, sides: Sides) -> Example:
    return Example(source=sides.source(*place), detail=detail, text=sides.show_question(*place))


CHECK = Check(examine=examine, conclude=conclude, needs="rensa", is_slow=True, compares=True)
