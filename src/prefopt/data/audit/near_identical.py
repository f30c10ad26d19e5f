"""Pairs whose two answers are almost the same: training them pushes the chosen answer's probability down.

Almost the same: the sets of their word trigrams have a Jaccard index above `LIMIT`; identical pairs have 1. To count
the words of all pairs takes longer than all other checks together, so a sketch of the character trigrams of both sides
decides in which pairs they are counted.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, Texts, by_split, say
from prefopt.data.defects import is_empty

LIMIT = 0.8
SAMPLED = 7
"""Bits of a trigram's hash that are 0 for those in a sketch: one of eight."""
FEW = 16
"""Up to so many trigrams in both sketches together, they decide nothing."""
CLEAR = 0.5
"""Jaccard index of two sketches below which the texts differ. Texts that share four of five word trigrams share about
as many of their letters' trigrams: in a sketch of more than `FEW`, they come out so low in one of 1,000 pairs."""
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
"""A word; each letter of a script that does not separate words."""
ROW_SHIFT = 24
MAX_LETTERS = 4_000_000
"""Letters that are looked at together, in some ten bytes of memory each."""

Rows = NDArray[np.int64]
Sketch = NDArray[np.int64]
Seen = tuple[Rows, NDArray[np.float64], NDArray[np.bool_]]


def find_near_identical(chunk: Chunk) -> Seen:
    """Returns the rows whose sides are almost the same, the Jaccard index of each, and which are identical."""
    found, indices, identical = [], [], []
    for row in _candidates(chunk.chosen, chunk.rejected):
        chosen, rejected = chunk.chosen.each[row], chunk.rejected.each[row]
        same = chosen.strip() == rejected.strip()
        index = 1.0 if same else jaccard(chosen, rejected)
        if index > LIMIT and not is_empty(chunk.records[row]):
            found.append(chunk.start + row)
            indices.append(index)
            identical.append(same)
    return np.array(found, np.int64), np.array(indices, np.float64), np.array(identical, np.bool_)


def jaccard(first: str, second: str) -> float:
    """Returns the Jaccard index of the sets of word trigrams of two texts, without case and punctuation."""
    one, two = map(_trigrams, (first, second))
    return len(one & two) / len(one | two)


def _trigrams(text: str) -> set[tuple[str, ...]]:
    """Returns the word trigrams; of fewer than three words, all of them together."""
    words = WORD.findall(text.lower())
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def _candidates(chosen: Texts, rejected: Texts) -> Iterator[int]:
    """Yields the rows, in order, whose sketches do not tell that the texts differ."""
    letters = np.cumsum(chosen.lengths + rejected.lengths)
    start = 0
    while start < len(letters):
        before = letters[start - 1] if start else 0
        end = max(int(np.searchsorted(letters, before + MAX_LETTERS)), start + 1)
        sketches = [_sketch(texts.each[start:end]) for texts in (chosen, rejected)]
        both = np.concatenate([sketches[0] << 1, sketches[1] << 1 | 1])
        both.sort(kind="stable")  # the rows of each sketch ascend, of which only a stable sort makes use
        grams = both[np.flatnonzero(np.diff(both, prepend=-1))] >> 1  # each once a side, so twice if both have it
        rows = grams >> ROW_SHIFT
        common = np.bincount(rows[1:][grams[1:] == grams[:-1]], minlength=end - start)
        union = np.bincount(rows, minlength=end - start) - common
        yield from (start + row for row in np.flatnonzero((union <= FEW) | (common >= CLEAR * union)).tolist())
        start = end


def _sketch(texts: Sequence[str]) -> Sketch:
    """Returns the sampled trigrams of the texts' bytes: of each the row, and its 24 bits."""
    joined = "".join(texts)
    if joined.isascii():  # letters are bytes: all texts are encoded at once
        letters, lengths = np.frombuffer(joined.lower().encode(), np.uint8), map(len, texts)
    else:
        encoded = [text.lower().encode("utf-8", "surrogatepass") for text in texts]
        letters, lengths = np.frombuffer(b"".join(encoded), np.uint8), map(len, encoded)
    if len(letters) < 3:
        return np.empty(0, np.int64)
    hashed = letters[:-2] * np.uint8(31) + letters[1:-1] * np.uint8(171) + letters[2:] * np.uint8(7)  # modulo 256
    at = np.flatnonzero((hashed ^ hashed >> np.uint8(4)) & np.uint8(SAMPLED) == 0)
    ends = np.cumsum(np.fromiter(lengths, np.int64, len(texts)))
    rows = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(at, ends), prepend=0))
    is_inside = at + 2 < ends[rows]
    rows, at = rows[is_inside], at[is_inside]
    first, second, third = (letters[at + place].astype(np.int64) for place in range(3))
    return rows << ROW_SHIFT | first << 16 | second << 8 | third


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found:
    rows = by_split([(split, found) for split, _, (found, _, _) in seen])
    places = [
        (same, -index, split, row)
        for split, _, (found, indices, identical) in seen
        for row, index, same in zip(found.tolist(), indices.tolist(), identical.tolist(), strict=True)
    ]
    shown = sorted(places)[:MAX_EXAMPLES]  # identical ones last: another check tells of them
    count, num_identical = len(places), sum(same for same, *_ in places)
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{say(count, 'pair')} whose answers are almost the same"
        + (f", {num_identical:,} of them identical" if num_identical else ""),
        remedy="Look at them: where only a detail differs, training lowers the chosen answer's probability too.",
        examples=[
            Example(source=sides.source(split, row), detail=f"{-index:.0%} of word trigrams in common")
            for _, index, split, row in shown
        ],
    )


CHECK = Check(kinds=("preference",), examine=find_near_identical, conclude=conclude)
