"""A judge that learned from the training pairs, by their words and letters, which answers are chosen."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.judges import SETTING, ClassifierJudgeConfig
from prefopt.evaluation.judges.judge import LabelledPair, Matchup
from prefopt.evaluation.statistics import Estimate, Floats, Prompts, share
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)

FEWEST_PROMPTS = 20
"""Prompts below which nothing is learned that could be tried on others."""
MOST_PAIRS = 10_000
"""Pairs that are learned from; of more, a sample. More hardly help, and each takes milliseconds."""
MOST_CHARACTERS = 2_000
"""Beginning of an answer that is looked at."""
NUM_FEATURES = 2**18
"""For words and pairs of words, and as many for runs of three to five letters."""
INVERSE_PENALTY = 1.0


class ClassifierJudge:
    """The answer that is more probably chosen is better: P(a over b) = sigmoid(w · (f(a) - f(b))).

    `f` are counts of words, pairs of words and runs of three to five letters, as log(1 + n), scaled to length 1, so
    that an answer gains nothing by its length alone. There is no intercept: swapping the answers swaps the verdict.

    Args:
        config: Its name, and how near a tie is.
        weights: `w`, of shape (2 * `NUM_FEATURES`,).
        accuracy: Share of pairs whose chosen answer it found after learning from other prompts.
        length_accuracy: Share of the same pairs whose chosen answer is the longer one.
        facts: What else `describe` gives.
    """

    sees_order = False

    def __init__(
        self,
        config: ClassifierJudgeConfig,
        weights: Floats,
        *,
        accuracy: Estimate,
        length_accuracy: Estimate,
        facts: Mapping[str, Any],
    ) -> None:
        self.name = config.name
        self._config, self._weights, self._facts = config, weights, facts
        self.accuracy, self.length_accuracy = accuracy, length_accuracy
        self._scores: dict[str, float] = {}
        self._num_cut = 0

    @classmethod
    def check(cls, config: ClassifierJudgeConfig, trained: Iterable[LabelledPair]) -> None:
        """Refuses too few pairs, and an environment without scikit-learn, before time is spent.

        Raises:
            UserError: There are too few prompts, or scikit-learn is missing.
        """
        where = f"{SETTING}: {config.name}:"
        _require_sklearn(where)
        num = len({pair.prompt for pair in trained if pair.chosen != pair.rejected})
        if num < FEWEST_PROMPTS:
            raise UserError(
                f"{where} learns from pairs of {FEWEST_PROMPTS} different prompts or more, and data.train has {num}. "
                "Give more pairs, or take a judge of another kind, such as rule."
            )

    @classmethod
    def learn(cls, config: ClassifierJudgeConfig, trained: Sequence[LabelledPair], *, seed: int) -> "ClassifierJudge":
        """Learns from pairs; equal pairs and seed give an equal judge.

        Args:
            config: Its name and the number of folds.
            trained: The training pairs; those of which both answers are equal are left out.
            seed: Of the sample, and of the folds.

        Raises:
            UserError: There are too few prompts, the answers do not differ in their words, or scikit-learn is missing.
        """
        cls.check(config, trained)
        where = f"{SETTING}: {config.name}:"
        pairs = [pair for pair in trained if pair.chosen != pair.rejected]
        if len(pairs) < len(trained):
            logger.info("%s leaves out %d pairs whose answers are equal", where, len(trained) - len(pairs))
        num_pairs, rng = len(pairs), np.random.default_rng(seed)
        if num_pairs > MOST_PAIRS:
            pairs = [pairs[row] for row in np.sort(rng.choice(num_pairs, MOST_PAIRS, replace=False)).tolist()]
            logger.info("%s learns from a sample of %d of %d pairs", where, MOST_PAIRS, num_pairs)
        num_cut = sum(len(answer) > MOST_CHARACTERS for pair in pairs for answer in (pair.chosen, pair.rejected))
        if num_cut:
            logger.info("%s reads the first %d characters of %d longer answers", where, MOST_CHARACTERS, num_cut)
        prompts = Prompts.of_texts([pair.prompt for pair in pairs])
        differences = count_features([pair.chosen for pair in pairs]) - count_features([p.rejected for p in pairs])
        if not differences.count_nonzero():
            raise UserError(
                f"{where} no chosen answer differs from its rejected one in words or letters, beside upper and lower "
                "case, so there is nothing to learn. Look at the pairs: python -m prefopt.show"
            )
        folds = rng.permutation(prompts.num)[prompts.numbers] % config.num_folds
        scores = _cross_validate(differences, folds)
        lengths = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], float)
        judge = cls(
            config,
            _fit(differences),
            accuracy=share(_wins(scores), prompts),
            length_accuracy=share(_wins(lengths), prompts),
            facts={
                "num_pairs": num_pairs,
                "num_learned": len(pairs),
                "num_folds": config.num_folds,
                "seed": seed,
                "learned_sha256": _digest(pairs),
            },
        )
        logger.info(
            "%s finds the chosen answer of %.1f %% of %d pairs whose prompts it has not learned from (the longer one "
            "is chosen in %.1f %%)",
            where, 100 * judge.accuracy.value, len(pairs), 100 * judge.length_accuracy.value,
        )  # fmt: skip
        return judge

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup."""
        texts = [answer for each in matchups for answer in (each.first, each.second)]
        if new := [text for text in dict.fromkeys(texts) if text not in self._scores]:
            self._num_cut += sum(len(text) > MOST_CHARACTERS for text in new)
            self._scores |= zip(new, (count_features(new) @ self._weights).tolist(), strict=True)
        scores = np.array([self._scores[text] for text in texts], float).reshape(-1, 2)
        gaps = np.tanh((scores[:, 0] - scores[:, 1]) / 2)  # P(first) - P(second)
        return np.where(np.abs(gaps) <= self._config.tie_within, 0.0, np.sign(gaps))

    def describe(self) -> Mapping[str, Any]:
        """Returns how well it told chosen from rejected on prompts that it had not learned from, and length alone."""
        return {
            "kind": "classifier",
            "tie_within": self._config.tie_within,
            "accuracy": self.accuracy.to_dict(),
            "length_accuracy": self.length_accuracy.to_dict(),
            **self._facts,
            "most_characters": MOST_CHARACTERS,
            "num_read": len(self._scores),
            "num_read_cut": self._num_cut,
        }


def _digest(pairs: Sequence[LabelledPair]) -> str:
    """Returns the SHA-256 (hex) of pairs in their order: equal ones give equal weights."""
    texts = [[pair.chosen, pair.rejected] for pair in pairs]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def count_features(texts: Sequence[str]) -> "csr_matrix":
    """Returns the features of texts, rows of length 1, shape (texts, 2 * `NUM_FEATURES`)."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    kinds: list[dict[str, Any]] = [
        {"ngram_range": (1, 2)},
        {"ngram_range": (3, 5), "analyzer": "char"},
    ]
    cut = [text[:MOST_CHARACTERS] for text in texts]
    counts = [
        HashingVectorizer(
            n_features=NUM_FEATURES, alternate_sign=False, norm=None, dtype=np.float32, **kind
        ).transform(cut)
        for kind in kinds
    ]
    joined = hstack(counts, format="csr")
    np.log1p(joined.data, out=joined.data)
    return normalize(joined, copy=False)


def _cross_validate(differences: "csr_matrix", folds: NDArray[np.int64]) -> Floats:
    """Returns the log-odds of each pair's label by what was learned from the other folds, shape (pairs,)."""
    scores = np.zeros(len(folds))
    for fold in np.unique(folds):
        is_tried = folds == fold
        scores[is_tried] = differences[is_tried] @ _fit(differences[~is_tried])
    return scores


def _fit(differences: "csr_matrix") -> Floats:
    """Returns the weights of a logistic regression from differences chosen - rejected.

    The library wants two classes, which is why every second difference is turned round; the loss is the same.
    """
    from scipy.sparse import diags
    from sklearn.linear_model import LogisticRegression

    signs = np.where(np.arange(differences.shape[0]) % 2 == 0, 1.0, -1.0).astype(np.float32)
    model = LogisticRegression(C=INVERSE_PENALTY, fit_intercept=False, max_iter=200)
    model.fit(diags(signs) @ differences, signs)
    return np.asarray(model.coef_[0], np.float64)


def _wins(gaps: Floats) -> Floats:
    """Returns 1 for a gap above 0, 0 for one below, and a half for none."""
    return (np.sign(gaps) + 1) / 2


def _require_sklearn(where: str) -> None:
    try:
        import sklearn  # noqa: F401 (an optional dependency: only its presence is checked)
    except ImportError as error:
        raise UserError(f"{where} needs scikit-learn. Install it: pip install scikit-learn.") from error
