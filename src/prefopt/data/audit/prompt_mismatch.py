"""Pairs whose two answers belong to different prompts, so that nothing can be learned from comparing them.

Rows without a prompt column whose transcripts ask different questions cannot be read at all: `schema` tells of these.
Here are rows with a prompt column of which only one side repeats the prompt.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, conclude_rows

Rows = NDArray[np.int64]


def find_mismatch(chunk: Chunk) -> Rows:
    """Returns the rows of text of which one side begins with the whole prompt and the other does not."""
    found = [
        row
        for row, record in enumerate(chunk.records)
        if isinstance(prompt := record.prompt, str)
        and len(prompt) >= 10
        and chunk.chosen.each[row].startswith(prompt) != chunk.rejected.each[row].startswith(prompt)
    ]
    return chunk.start + np.array(found, np.int64)


CHECK = Check(
    kinds=("preference",),
    examine=find_mismatch,
    conclude=partial(
        conclude_rows,
        one="pair",
        what="of which one answer repeats the prompt and the other does not",
        remedy="Give the prompt in its column only, and only the answers in 'chosen' and 'rejected'.",
    ),
)
