"""Which rows a slow check looks at, where rows stream by and nobody knows how many there will be."""

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.words import mix


def sample_rows(start: int, num_rows: int, *, budget: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns rows of a chunk, counted from 0 within it, and how many rows of the split each stands for.

    All of the first `budget` rows are taken, and of later ones the row i with probability budget / i: of a million
    rows the budget and three times as many. Which ones is decided by their places alone.

    Args:
        start: Place of the chunk's first row within its split, from 0.
        num_rows: Rows of the chunk.
        budget: Rows at the beginning that are all taken.
    """
    places = np.arange(start, start + num_rows)
    weights = np.maximum(1.0, (places + 1) / budget)
    draws = (mix(mix(places.astype(np.uint64) + np.uint64(1))) >> np.uint64(32)).astype(np.float64) / 2**32
    taken = np.flatnonzero(draws * weights < 1.0)
    return taken, weights[taken]
