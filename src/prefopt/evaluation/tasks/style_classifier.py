"""A classifier of letters that tells the style of chosen answers from that of rejected ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.statistics import Bootstrap, Estimate, Floats, Prompts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEWEST_PAIRS = 20
MAX_PAIRS = 2_000
"""Training pairs of which it learns; of more, that many are drawn."""
MAX_CHARACTERS = 1_000
"""Beginning of an answer that is read."""
SEQUENCES = (3, 5)
"""Shortest and longest sequence of characters that is counted."""
NUM_FEATURES = 2**16
C = 1.0
"""Inverse penalty. The probabilities do not depend on it much, since they are calibrated."""
NUM_BINS = 10
RESAMPLES = 1_000


@dataclass(frozen=True)
class StyleClassifier:
    """Logistic regression on sequences of characters, learned from training pairs, each answer for itself; calibrated.

    Attributes:
        weights: For each feature, shape (`NUM_FEATURES`,).
        intercept: Log-odds of an answer without features.
        quality: What it is worth on prompts that it did not learn from: `auc`, `brier` and `reliability`.
    """

    weights: Floats
    intercept: float
    quality: dict[str, Any]

    @classmethod
    def learn(cls, pairs: Sequence[LabelledPair], num_folds: int, seed: int) -> "StyleClassifier | str":
        """Learns from all pairs, after it was tried on each part of the prompts by learning from the others.

        Args:
            pairs: Those without a rejected answer are left out.
            num_folds: Number of parts.
            seed: Of what is drawn.

        Returns:
            The classifier, or why there is none.
        """
        if obstacle := cls.find_obstacle(pairs):
            return obstacle
        usable = _usable(pairs)
        if len(usable) > MAX_PAIRS:
            rows = np.random.default_rng(seed).choice(len(usable), MAX_PAIRS, replace=False)
            usable = [usable[row] for row in np.sort(rows).tolist()]
        features = count_sequences([*(pair.chosen for pair in usable), *(pair.rejected for pair in usable)])
        is_chosen = np.arange(2 * len(usable)) < len(usable)
        prompts = Prompts.of_texts([pair.prompt for pair in usable])
        folds = prompts.numbers % num_folds
        if prompts.num < 2:
            return "all training pairs have the same prompt, so that it cannot be tried on others"
        both = np.concatenate([folds, folds])
        log_odds = np.zeros(len(is_chosen))
        for fold in np.unique(folds).tolist():
            weights, intercept = _fit(features[both != fold], is_chosen[both != fold])
            log_odds[both == fold] = features[both == fold] @ weights + intercept
        slope, offset = calibrate(log_odds, is_chosen)
        probabilities = _probability(slope * log_odds + offset)
        auc = estimate_auc(log_odds[is_chosen], log_odds[~is_chosen], prompts, seed)
        quality = {
            "auc": {**auc.to_dict(), "ci95": [auc.low, auc.high] if auc.has_interval else None},
            **assess(probabilities, is_chosen),
        }
        weights, intercept = _fit(features, is_chosen)
        return cls(slope * weights, slope * intercept + offset, quality)

    @staticmethod
    def find_obstacle(pairs: Sequence[LabelledPair]) -> str:
        """Returns why nothing can be learned from pairs, as far as it is plain without learning; empty if it can."""
        if find_spec("sklearn") is None:
            return "scikit-learn is not installed (pip install scikit-learn)"
        num = len(_usable(pairs))
        if num < FEWEST_PAIRS:
            return f"it needs {FEWEST_PAIRS} training pairs with two answers, and there are {num}"
        return ""

    def read(self, answers: Sequence[str]) -> Floats:
        """Returns the probability that each answer is in the style of chosen ones; 0 for answers without text."""
        if not answers:
            return np.zeros(0)
        found = _probability(count_sequences(answers) @ self.weights + self.intercept)
        return np.where([bool(answer.strip()) for answer in answers], found, 0.0)


def _usable(pairs: Sequence[LabelledPair]) -> list[LabelledPair]:
    return [pair for pair in pairs if pair.chosen.strip() and pair.rejected.strip()]


def count_sequences(texts: Sequence[str]) -> "csr_matrix":
    """Returns log(1 + count) of the sequences of characters in each text, in rows of length 1, hashed to features."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    counter = HashingVectorizer(
        analyzer="char",
        ngram_range=SEQUENCES,
        n_features=NUM_FEATURES,
        alternate_sign=False,
        norm=None,
        lowercase=False,
    )
    counts = counter.transform([text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in texts])
    counts.data = np.log1p(counts.data)
    return normalize(counts)


def estimate_auc(chosen: Floats, rejected: Floats, prompts: Prompts, seed: int) -> Estimate:
    """Estimates the chance that a chosen answer has a higher score than a rejected one of any pair; ties count half.

    Args:
        chosen: Scores of the chosen answers, shape (pairs,).
        rejected: Of the rejected answers of the same pairs.
        prompts: Of the pairs.
        seed: Of the bootstrap.
    """
    num = len(chosen)
    ranks = rankdata(np.concatenate([chosen, rejected]))
    # Placements: the share of the other side that each answer beats (DeLong et al. 1988).
    above = (ranks[:num] - rankdata(chosen)) / num
    below = 1 - (ranks[num:] - rankdata(rejected)) / num
    return Bootstrap(RESAMPLES, seed).mean(above + below - above.mean(), prompts).clipped(0.0, 1.0)


def assess(probabilities: Floats, truths: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns whether probabilities are as sure as right.

    Returns:
        `brier`, the mean squared error; `reliability`, for each tenth of the probabilities with an answer in it their
        mean, the share of truths, and the number.
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    return {
        "brier": float(((probabilities - truths) ** 2).mean()),
        "reliability": [
            {
                "mean": float(probabilities[bins == place].mean()),
                "share_chosen": float(truths[bins == place].mean()),
                "n": int((bins == place).sum()),
            }
            for place in np.unique(bins).tolist()
        ],
    }


def _fit(features: "csr_matrix", is_chosen: NDArray[np.bool_]) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=C, max_iter=200).fit(features, is_chosen)
    return np.asarray(model.coef_[0], float), float(model.intercept_[0])


def calibrate(log_odds: Floats, is_chosen: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns slope and offset that turn log-odds, of answers not learned from, into those that are as sure as right.

    A logistic regression on the one number (Platt 1999). Its targets are a little inside of 0 and 1, so that log-odds
    that part the sides without a mistake do not become infinite.
    """
    from sklearn.linear_model import LogisticRegression

    num = int(is_chosen.sum())
    targets = np.where(is_chosen, (num + 1) / (num + 2), 1 / (len(is_chosen) - num + 2))
    model: Any = LogisticRegression(C=1e6, max_iter=1_000).fit(
        np.concatenate([log_odds, log_odds])[:, None],
        np.repeat([True, False], len(log_odds)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    return max(float(model.coef_[0, 0]), 0.0), float(model.intercept_[0])


def _probability(log_odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds)), float)
