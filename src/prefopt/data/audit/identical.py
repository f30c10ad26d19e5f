"""Pairs whose two answers are equal: they have no gradient."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, conclude_rows
from prefopt.data.defects import is_empty, is_identical

Rows = NDArray[np.int64]


def find_identical(chunk: Chunk) -> Rows:
    """Returns the rows whose sides are equal up to outer whitespace; two empty sides are the check `empty`'s."""
    texts = zip(chunk.chosen.each, chunk.rejected.each, strict=True)
    alike = [row for row, (chosen, rejected) in enumerate(texts) if chosen.strip() == rejected.strip()]
    found = [row for row in alike if is_identical(chunk.records[row]) and not is_empty(chunk.records[row])]
    return chunk.start + np.array(found, np.int64)


CHECK = Check(
    kinds=("preference",),
    examine=find_identical,
    conclude=partial(
        conclude_rows,
        one="pair",
        what="with chosen equal to rejected",
        remedy="Drop them (prefopt audit --fix), or set data.on_identical=skip.",
    ),
)
