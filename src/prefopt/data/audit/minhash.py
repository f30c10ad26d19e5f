"""Which texts have most of their words in common, found by MinHash without comparing each with each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.words import distinct, mix, split_words

NUM_BANDS, NUM_ROWS = 16, 8
"""Two texts agree in a band with probability J^8, and in one of 16 with 0.95 at J = 0.8, 0.9999 at J = 0.9."""
SIMILAR = 0.8
"""Jaccard index of the sets of words from which texts are near-duplicates."""
MIN_WORDS = 8
"""Shorter texts are alike by chance, and are not compared."""
MAX_COMPARED = 50_000
"""Pairs of texts whose words are compared, those first that are most alike."""
MIN_BANDS = 3
"""Bands in which the others must agree: the number expected at a Jaccard index of 0.8."""
SEED = 42


def band_keys(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Returns what texts with similar sets of words have in common in at least one column, shape (texts, bands)."""
    digests = np.array([_digest(text) for text in texts], np.uint32)
    values = digests.reshape(len(texts), NUM_BANDS, NUM_ROWS)
    keys = np.zeros((len(texts), NUM_BANDS), np.uint64)
    for row in range(NUM_ROWS):
        keys = mix(keys + values[:, :, row])
    return (keys >> np.uint64(32)).astype(np.uint32)


def _digest(text: str) -> list[int]:
    # Not the library's call for many texts at once: its threads do not live on in a forked process, which would wait
    # for them for ever; and one call a text costs no more.
    from rensa import RMinHash

    digest = RMinHash(NUM_BANDS * NUM_ROWS, SEED)
    try:
        digest.update(split_words(text))
    except UnicodeEncodeError:  # a lone surrogate, which only Python's text can hold
        digest.update(split_words(text.encode("utf-8", "replace").decode()))
    return list(digest.digest())


def jaccard(one: str, other: str) -> float:
    """Returns the share of words in both texts among those in either; 1 for two without words."""
    ones, others = set(split_words(one)), set(split_words(other))
    return len(ones & others) / len(ones | others) if ones or others else 1.0


def pairs_within(keys: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Returns pairs of rows that may be similar, the smaller first, shape (pairs, 2), those most alike first.

    Of the rows that agree in a band, each is paired with the first and with the one before it: enough to join all
    that are similar to each other, and never more than two pairs a row and band.
    """
    num_rows = len(keys)
    codes = []
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        is_new = np.concatenate([[True], band[order][1:] != band[order][:-1]])[:num_rows]
        first = order[np.maximum.accumulate(np.where(is_new, np.arange(num_rows), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        codes += [(other * num_rows + order)[~is_new] for other in (first, before)]
    pairs = distinct(np.concatenate(codes))
    return _most_alike_first(np.stack([pairs // num_rows, pairs % num_rows], axis=1), keys, keys)


def pairs_between(keys: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Returns pairs of a row of `keys` and one of `others` that may be similar, as `pairs_within`."""
    codes = []
    for band, other in zip(keys.T, others.T, strict=True):
        order = np.argsort(band, kind="stable")
        places = np.searchsorted(band[order], other)
        found = order[np.minimum(places, len(order) - 1)]
        is_equal = band[found] == other
        codes.append((found * len(others) + np.arange(len(others)))[is_equal])
    pairs = distinct(np.concatenate(codes))
    return _most_alike_first(np.stack([pairs // len(others), pairs % len(others)], axis=1), keys, others)


def num_equal_bands(
    pairs: NDArray[np.int64], keys: NDArray[np.uint32], others: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Returns in how many bands the rows of each pair agree, shape (pairs,)."""
    equal = np.zeros(len(pairs), np.int64)
    for band, other in zip(keys.T, others.T, strict=True):
        equal += band[pairs[:, 0]] == other[pairs[:, 1]]
    return equal


def _most_alike_first(
    pairs: NDArray[np.int64], keys: NDArray[np.uint32], others: NDArray[np.uint32]
) -> NDArray[np.int64]:
    return pairs[np.argsort(-num_equal_bands(pairs, keys, others), kind="stable")]
