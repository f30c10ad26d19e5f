"""What words alone tell of which answer is chosen: a linear classifier, judged on prompts that it never saw.

Two checks ask it: `label_noise` where it disagrees with the labels, and `separability` how often it agrees.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Chunk
from prefopt.data.audit.sampling import sample_rows
from prefopt.data.audit.words import distinct, hash_runs, hash_words, split_words
from prefopt.data.intervals import wilson

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEATURE_BITS = 18
NUM_FEATURES = 2**FEATURE_BITS
BUDGET = 20_000
"""Pairs at the beginning of a split that are all looked at; of later ones a sample."""
MIN_PAIRS = 200
"""Of fewer pairs a classifier learns nothing that it could tell."""
TOO_FEW = f"too few pairs: a classifier of words needs {MIN_PAIRS}"
NUM_FOLDS = 5
ALPHA, EPOCHS = 1e-3, 5
"""Penalty and passes of the classifier: on four sets, flipped labels were found best by these."""
MAX_CHARACTERS = 2_000
"""Beginning of an answer that is looked at."""
SEED = 7


@dataclass(frozen=True, eq=False)
class Bags:
    """The words and pairs of words that only one answer of a pair has, as numbers of features.

    Attributes:
        rows: Rows that were looked at, counted from 0 within the chunk, shape (rows,).
        weights: Rows of the split that each stands for, shape (rows,).
        prompts: A number for each one's prompt, shape (rows,).
        lengths: Characters of chosen less those of rejected, shape (rows,).
        features: Features of all rows, one row after the other: n + 1 if chosen has feature n, -(n + 1) if rejected.
        num_features: How many of them belong to each row, shape (rows,).
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    prompts: NDArray[np.uint32]
    lengths: NDArray[np.int32]
    features: NDArray[np.int32]
    num_features: NDArray[np.int32]


def examine(chunk: Chunk) -> Bags:
    """Returns the features of the pairs of a chunk, or of a sample."""
    rows, weights = sample_rows(chunk.start, len(chunk), budget=BUDGET)
    places = rows.tolist()
    texts = [texts.each[row][:MAX_CHARACTERS] for texts in (chunk.chosen, chunk.rejected) for row in places]
    features, owners = number_features(texts)
    is_rejected = owners >= len(rows)
    # One number for row, feature and side, in this order, so that a feature of both sides stands twice in a row.
    codes = distinct(2 * ((owners - len(rows) * is_rejected) * NUM_FEATURES + features) + is_rejected)
    is_shared = np.zeros(len(codes), bool)
    is_shared[1:] = codes[1:] // 2 == codes[:-1] // 2
    is_shared[:-1] |= is_shared[1:]
    codes = codes[~is_shared]
    prompts = [zlib.crc32(chunk.prompts.each[row].encode("utf-8", "replace")) for row in places]
    return Bags(
        rows,
        weights,
        np.array(prompts, np.uint32),
        (chunk.chosen.lengths - chunk.rejected.lengths)[rows].astype(np.int32),
        ((1 - 2 * (codes % 2)) * (codes // 2 % NUM_FEATURES + 1)).astype(np.int32),
        np.bincount(codes // (2 * NUM_FEATURES), minlength=len(rows)).astype(np.int32),
    )


def number_features(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns a number below `NUM_FEATURES` for each word, and each two that follow each other, in lower case.

    Returns:
        The numbers, and for each the index of its text.
    """
    words, owners = hash_words([split_words(text.lower()) for text in texts])
    twos, twos_owners = hash_runs(words, owners, 2)
    features = np.concatenate([words, twos]) >> np.uint64(64 - FEATURE_BITS)
    return features.astype(np.int64), np.concatenate([owners, twos_owners])


@dataclass(frozen=True, eq=False)
class Judged:
    """What the classifier says of pairs whose prompts it was not trained on.

    Attributes:
        scores: Log-odds that the label is right, by the words, shape (pairs,).
        weights: Rows that each pair stands for, shape (pairs,).
        prompts: A number for each one's prompt, shape (pairs,).
        lengths: Characters of chosen less those of rejected, shape (pairs,).
        coefficients: Mean over the classifiers of each feature's weight, shape (features,); positive: chosen.
    """

    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    prompts: NDArray[np.uint32]
    lengths: NDArray[np.int32]
    coefficients: NDArray[np.float64]

    @cached_property
    def accuracy(self) -> float:
        """Share of pairs of which the words tell the chosen answer; one of which they tell nothing counts half."""
        return float(np.average(_wins(self.scores), weights=self.weights))

    @cached_property
    def sampled(self) -> str:
        """Says that only a sample was looked at, to follow other words; empty if all pairs were."""
        num_pairs = len(self.scores)
        return "" if num_pairs == round(float(self.weights.sum())) else f", by a sample of {num_pairs:,}"

    @cached_property
    def length_accuracy(self) -> float:
        """The same for the better of two rules: the longer answer, or the shorter one."""
        longer = float(np.average(_wins(self.lengths.astype(np.float64)), weights=self.weights))
        return max(longer, 1 - longer)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy: Wilson's, for the number of independent pairs with as much spread."""
        return interval(_wins(self.scores), self.weights, self.prompts)


def _wins(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.sign(scores) + 1) / 2


def interval(
    wins: NDArray[np.float64], weights: NDArray[np.float64], prompts: NDArray[np.uint32]
) -> tuple[float, float]:
    """Returns Wilson's interval of a weighted share, for as many pairs as would vary as much; prompts are clusters."""
    share = float(np.average(wins, weights=weights))
    _, groups = np.unique(prompts, return_inverse=True)
    residuals = np.bincount(groups, weights=weights * (wins - share)) / weights.sum()
    variance = float((residuals**2).sum())
    spread = share * (1 - share)
    n = spread / variance if variance > 0 and spread > 0 else float(groups.max() + 1)
    return wilson(share * n, n)


def judge(seen: Sequence[tuple[str, int, Bags]]) -> Judged | None:
    """Trains on four fifths of the prompts and judges the last, five times; None if there are too few pairs.

    The second check that asks gets the answer of the first.
    """
    if sum(len(bags.rows) for _, _, bags in seen) < MIN_PAIRS:
        return None
    first = seen[0][2]
    if first not in _judged:
        _judged[first] = _cross_validate([bags for _, _, bags in seen])
    return _judged[first]


_judged: "WeakKeyDictionary[Bags, Judged]" = WeakKeyDictionary()


def _cross_validate(bags: Sequence[Bags]) -> Judged:
    prompts = np.concatenate([each.prompts for each in bags])
    weights = np.concatenate([each.weights for each in bags])
    differences, signs = _differences(bags)
    folds = prompts % NUM_FOLDS
    scores = np.zeros(len(prompts))
    coefficients = np.zeros(NUM_FEATURES)
    for fold in range(NUM_FOLDS):
        is_judged = folds == fold
        if not is_judged.any():
            continue
        learned = _train(differences[~is_judged], signs[~is_judged], weights[~is_judged])
        scores[is_judged] = signs[is_judged] * (differences[is_judged] @ learned)
        coefficients += learned / NUM_FOLDS
    return Judged(scores, weights, prompts, np.concatenate([each.lengths for each in bags]), coefficients)


def _differences(bags: Sequence[Bags]) -> tuple["csr_matrix", NDArray[np.int8]]:
    """Returns the features of one answer less those of the other, in rows of length 1, shape (pairs, features).

    Returns:
        The differences, and for each 1 if it is chosen less rejected, -1 if it is rejected less chosen.
    """
    from scipy.sparse import csr_matrix

    counts = np.concatenate([each.num_features for each in bags])
    signs = np.where(np.arange(len(counts)) % 2 == 0, 1, -1).astype(np.int8)
    lengths = (signs / np.sqrt(np.maximum(counts, 1))).astype(np.float32)
    features = np.concatenate([each.features for each in bags])
    values = np.repeat(lengths, counts)
    values[features < 0] *= -1
    np.abs(features, out=features)
    features -= 1
    places = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return csr_matrix((values, features, places), shape=(len(counts), NUM_FEATURES)), signs


def _train(differences: "csr_matrix", signs: NDArray[np.int8], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weight of each feature by logistic regression without an intercept.

    The library wants two classes, which is why every second difference is turned round; the loss is the same.
    """
    from sklearn.linear_model import SGDClassifier

    if len(set(signs.tolist())) < 2:
        return np.zeros(NUM_FEATURES)
    model: Any = SGDClassifier(
        loss="log_loss",
        alpha=ALPHA,
        fit_intercept=False,
        average=True,
        max_iter=EPOCHS,
        tol=None,
        random_state=SEED,
    )
    model.fit(differences, signs, sample_weight=weights)
    return np.asarray(model.coef_[0], np.float64)
