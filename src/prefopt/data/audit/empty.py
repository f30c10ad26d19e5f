"""Rows with an answer that holds nothing: neither text nor a tool call."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, conclude_rows
from prefopt.data.defects import is_empty

Rows = NDArray[np.int64]


def find_empty(chunk: Chunk) -> Rows:
    """Returns the rows for which `prefopt.data.defects.is_empty` holds."""
    return chunk.start + np.array([row for row, record in enumerate(chunk.records) if is_empty(record)], np.int64)


CHECK = Check(
    examine=find_empty,
    conclude=partial(
        conclude_rows,
        one="row",
        what="with an empty answer",
        remedy="Drop them (prefopt audit --fix), or set data.on_empty=skip.",
    ),
)
