"""Rows with an answer that holds nothing: neither text nor a tool call."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, Found, Sides, by_split, say
from prefopt.data.defects import is_empty

Rows = NDArray[np.int64]


def find_empty(chunk: Chunk) -> Rows:
    """Returns the rows for which `prefopt.data.defects.is_empty` holds."""
    return chunk.start + np.array([row for row, record in enumerate(chunk.records) if is_empty(record)], np.int64)


def conclude(seen: Sequence[tuple[str, int, Rows]], sides: Sides) -> Found:
    rows = by_split([(split, found) for split, _, found in seen])
    count = sum(map(len, rows.values()))
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{say(count, 'row')} with an empty answer",
        remedy="Drop them (prefopt audit --fix), or set data.on_empty=skip.",
        examples=sides.examples(rows),
    )


CHECK = Check(examine=find_empty, conclude=conclude)
