"""A classifier of letters that tells the style of chosen answers from that of rejected ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.statistics import Bootstrap, Floats, Prompts

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
"""Inverse penalty. Ten times as much tells clear styles more surely, and is too sure where there is none: its Brier
score on 500 pairs of UltraFeedback, whose sides differ little in style, is 0.264, against 0.248 with this, and 0.250
of a coin."""
NUM_BINS = 10
RESAMPLES = 1_000


@dataclass(frozen=True)
class StyleClassifier:
    """Logistic regression on sequences of characters, learned from training pairs, each answer for itself.

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
        if find_spec("sklearn") is None:
            return "scikit-learn is not installed (pip install 'prefopt[judge]')"
        usable = [pair for pair in pairs if pair.chosen.strip() and pair.rejected.strip()]
        if len(usable) < FEWEST_PAIRS:
            return f"it needs {FEWEST_PAIRS} training pairs with two answers, and there are {len(usable)}"
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
        probabilities = np.zeros(len(is_chosen))
        for fold in np.unique(folds).tolist():
            learned = _fit(features[both != fold], is_chosen[both != fold])
            probabilities[both == fold] = _probability(features[both == fold], *learned)
        quality = assess(probabilities[is_chosen], probabilities[~is_chosen], prompts, seed)
        return cls(*_fit(features, is_chosen), quality)

    def read(self, answers: Sequence[str]) -> Floats:
        """Returns the probability that each answer is in the style of chosen ones; 0 for answers without text."""
        found = _probability(count_sequences(answers), self.weights, self.intercept) if answers else np.zeros(0)
        return np.where([bool(answer.strip()) for answer in answers], found, 0.0)


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


def assess(chosen: Floats, rejected: Floats, prompts: Prompts, seed: int) -> dict[str, Any]:
    """Returns how well probabilities tell chosen answers from rejected ones, and whether they are as sure as right.

    Args:
        chosen: Probabilities of the chosen answers, shape (pairs,).
        rejected: Of the rejected answers of the same pairs.
        prompts: Of the pairs.
        seed: Of the bootstrap.

    Returns:
        `auc`, the chance that a chosen answer has a higher probability than a rejected one of any pair, with its
        interval; `brier`, the mean squared error; `reliability`, for each tenth of the probabilities with an answer in
        it their mean, the share of chosen answers, and the number.
    """
    num = len(chosen)
    ranks = rankdata(np.concatenate([chosen, rejected]))
    # Placements: the share of the other side that each answer beats (DeLong et al. 1988); ties count half.
    above = (ranks[:num] - rankdata(chosen)) / num
    below = 1 - (ranks[num:] - rankdata(rejected)) / num
    auc = float(above.mean())
    found = Bootstrap(RESAMPLES, seed).mean(above + below - auc, prompts).clipped(0.0, 1.0)
    values = np.concatenate([chosen, rejected])
    truths = np.arange(2 * num) < num
    bins = np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1)
    return {
        "auc": {**found.to_dict(), "ci95": [found.low, found.high] if found.has_interval else None},
        "brier": float(((values - truths) ** 2).mean()),
        "reliability": [
            {
                "mean": float(values[bins == place].mean()),
                "share_chosen": float(truths[bins == place].mean()),
                "n": int((bins == place).sum()),
            }
            for place in np.unique(bins).tolist()
        ],
        "n_pairs": num,
    }


def _fit(features: "csr_matrix", is_chosen: "np.ndarray[Any, np.dtype[np.bool_]]") -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=C, max_iter=200).fit(features, is_chosen)
    return np.asarray(model.coef_[0], float), float(model.intercept_[0])


def _probability(features: "csr_matrix", weights: Floats, intercept: float) -> Floats:
    return np.asarray(1 / (1 + np.exp(-(features @ weights + intercept))), float)
