"""Rows that repeat an earlier row of the same split exactly: they count twice, and their gain may not be real."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, hashes, say

Keys = NDArray[np.uint64]


def digest(chunk: Chunk) -> Keys:
    """Returns a digest of all fields of each row but its place."""
    texts = (chunk.prompts.each, chunk.chosen.each, chunk.rejected.each, chunk.forms)
    return hashes([*zip(*texts, strict=True)])


def conclude(seen: Sequence[tuple[str, int, Keys]], sides: Sides) -> Found:
    rows: dict[str, NDArray[np.int64]] = {}
    examples: list[Example] = []
    num_rows = 0
    sizes: Counter[int] = Counter()
    for split in dict.fromkeys(split for split, _, _ in seen):
        keys = np.concatenate([keys for of, _, keys in seen if of == split])
        num_rows += len(keys)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        found, num_groups = np.unique(np.bincount(inverse), return_counts=True)
        sizes.update(dict(zip(found.tolist(), num_groups.tolist(), strict=True)))
        first = first[inverse]
        rows[split] = np.flatnonzero(first != np.arange(len(keys)))
        examples += [
            Example(source=sides.source(split, row), detail=f"repeats {sides.source(split, int(first[row]))}")
            for row in rows[split][: MAX_EXAMPLES - len(examples)].tolist()
        ]
    count = sum(map(len, rows.values()))
    return Found(
        rows=rows,
        num_rows=num_rows,
        share=count / num_rows,
        summary=f"{say(count, 'row repeats', 'rows repeat')} an earlier row",
        remedy="Drop them: prefopt audit --fix keeps the first of each.",
        examples=examples,
        values={"group_sizes": {str(size): sizes[size] for size in sorted(sizes) if size > 1}},
    )


CHECK = Check(examine=digest, conclude=conclude)
