"""What is tried first where answers are labels: logistic regression on the prompt's words."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MAX_PAIRS = 20_000
"""Training pairs of which it learns; of more, that many are drawn."""
MAX_FEATURES = 10_000
"""Words that are counted. Pairs of words cost 20 times the time and gain nothing on banking77."""
MAX_CHARACTERS = 10_000
"""Beginning of a prompt that is read."""


@dataclass(frozen=True)
class Baseline:
    """A classifier of prompts.

    Attributes:
        model: TF-IDF of words, then logistic regression.
        num_learned: Pairs of which it learned.
    """

    model: "Pipeline"
    num_learned: int

    @classmethod
    def learn(cls, prompts: Sequence[str], labels: Sequence[str], seed: int) -> "Baseline | str":
        """Learns from the prompts of training and their labels.

        Returns:
            The classifier, or why there is none.
        """
        if find_spec("sklearn") is None:
            return "scikit-learn is not installed (pip install scikit-learn)"
        if len(set(labels)) < 2:
            return "the training pairs have fewer than two labels"
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        rows = np.arange(len(prompts))
        if len(prompts) > MAX_PAIRS:
            rows = np.sort(np.random.default_rng(seed).choice(len(prompts), MAX_PAIRS, replace=False))
        words = TfidfVectorizer(sublinear_tf=True, max_features=MAX_FEATURES)
        model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=200))
        try:
            kept = rows.tolist()
            model.fit([prompts[row][:MAX_CHARACTERS] for row in kept], [labels[row] for row in kept])
        except ValueError as error:  # the prompts have no words, or the labels of the drawn ones are all the same
            return f"it cannot learn from these prompts ({error})"
        return cls(model, len(rows))

    @property
    def description(self) -> str:
        return f"TF-IDF of words and logistic regression, learned from {self.num_learned:,} pairs"

    def predict(self, prompts: Sequence[str]) -> list[str]:
        """Returns the label of each prompt."""
        return [str(label) for label in self.model.predict([prompt[:MAX_CHARACTERS] for prompt in prompts])]
