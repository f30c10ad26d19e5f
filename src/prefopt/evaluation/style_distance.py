"""How far the style of a tuned model's answers is from its base's, where the prompts have nothing to do with training.

A distance alone means nothing: two halves of the same model's answers are apart, too. So each distance stands beside
that of random halves of the base's own answers, and beside those of answers that are swapped between both models.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.prose import Prose
from prefopt.evaluation.statistics import Floats

FEWEST_TEXTS = 10
"""Answers of each model, below which there is no distance."""
MAX_TEXTS = 400
"""Answers of each model that are compared, which takes about five seconds; of more, that many are drawn."""
MAX_CHARACTERS = 2_000
"""Beginning of an answer that is read."""
SEQUENCES = (3, 4, 5)
"""Lengths of the sequences of characters that are counted."""
NUM_FEATURES = 2**13
"""Sequences that are compared: the most frequent ones of both models together."""
DRAWS = 500
"""Swaps, and as many halves, that are drawn."""
LEVEL = 0.05
FUNCTION_WORDS = (
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "before", "but", "by", "can", "could", "did", "do", "does", "for", "from", "had", "has", "have",
    "he", "her", "here", "him", "his", "how", "i", "if", "in", "into", "is", "it", "its", "just", "like",
    "may", "me", "more", "most", "must", "my", "never", "no", "not", "now", "of", "on", "one", "only", "or",
    "our", "out", "over", "own", "she", "should", "so", "some", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "through", "to", "too", "under", "up", "us",
    "very", "was", "we", "were", "what", "when", "where", "which", "while", "who", "will", "with", "would",
    "you", "your",
)  # fmt: skip
"""English words that stand in texts about anything."""
Members = NDArray[np.bool_]
"""Which texts belong to a group, for each of several divisions, shape (draws, texts)."""
MEASURES = ("ngram_cosine", "delta", "length", "punctuation", "type_token")


@dataclass(frozen=True)
class Distance:
    """One distance with its references.

    Attributes:
        value: Between the answers of both models.
        halves: Mean distance of two random halves of the base's answers, as each half would have it with all answers.
        p_value: Share of random swaps between the two models' answers to a prompt with at least this distance: small
            if the models' styles differ at all, however little.
    """

    value: float
    halves: float
    p_value: float

    @property
    def ratio(self) -> float:
        """How many times as far as halves of the base's own answers; about 1 if the models write alike."""
        return self.value / self.halves if self.halves > 0 else inf


@dataclass(frozen=True)
class StyleDistance:
    """Distances between the styles of two models' answers to the same prompts.

    Attributes:
        distances: `ngram_cosine`, 1 less the cosine between the counts of 3 to 5 characters; `delta`, Burrows's (2002)
            Delta, the mean difference of the frequencies of function words in standard deviations of the base's
            answers; `length` in words, `punctuation` marks for each word and `type_token`, the share of different
            words, each as difference of the means in standard deviations of the base's answers. What cannot be
            measured in these texts, as function words in Chinese, is left out.
        p_value: For no difference in any of them: corrected for looking at all.
        num_texts: Answers of each model.
    """

    distances: dict[str, Distance]
    p_value: float
    num_texts: int

    @property
    def differs(self) -> bool:
        """Whether the styles differ by more than chance."""
        return self.p_value <= LEVEL

    def to_dict(self) -> dict[str, object]:
        found = {
            key: {**vars(each), "ratio": each.ratio if isfinite(each.ratio) else None}
            for key, each in self.distances.items()
        }
        return {"distances": found, "p_value": self.p_value, "n_texts": self.num_texts, "differs": self.differs}


def style_distance(base_texts: Sequence[str], tuned_texts: Sequence[str], seed: int = 0) -> StyleDistance | None:
    """Compares the styles of two models' answers to the same prompts.

    Args:
        base_texts: Answers of the base; of more than `MAX_TEXTS`, those are taken that are drawn.
        tuned_texts: Answers of the tuned model to the same prompts, in the same order.
        seed: Of what is drawn.

    Returns:
        The distances; None for fewer than `FEWEST_TEXTS` prompts to which both models answer anything.
    """
    pairs = [(a, b) for a, b in zip(base_texts, tuned_texts, strict=True) if a.strip() and b.strip()]
    rng = np.random.default_rng(seed)
    if len(pairs) < FEWEST_TEXTS:
        return None
    if len(pairs) > MAX_TEXTS:
        pairs = [pairs[row] for row in np.sort(rng.choice(len(pairs), MAX_TEXTS, replace=False)).tolist()]
    num = len(pairs)
    features = _Features.of([text[:MAX_CHARACTERS] for side in zip(*pairs, strict=True) for text in side], num)
    is_tuned = np.arange(2 * num) >= num
    swaps = rng.random((DRAWS, num)) < 0.5
    swapped = np.concatenate([swaps, ~swaps], axis=1)
    found = features.distances(~is_tuned[None], is_tuned[None])
    of_swaps = features.distances(~swapped, swapped)
    of_halves = features.distances(*_halves(num, rng))
    known = [key for key in MEASURES if np.isfinite(found[key]).all()]
    distances = {
        key: Distance(
            value=float(found[key][0]),
            # Means of half as many answers vary twice as much.
            halves=float(of_halves[key].mean() / (2 if key == "ngram_cosine" else sqrt(2))),
            p_value=_p_value(of_swaps[key], found[key][0]),
        )
        for key in known
    }
    return StyleDistance(distances, _joint_p_value(found, of_swaps, known), num)


def _halves(num: int, rng: np.random.Generator) -> tuple[Members, Members]:
    """Returns which of the base's answers are in the first and in the second half, each of shape (draws, texts)."""
    order = np.argsort(rng.random((DRAWS, num)), axis=1)
    nobody = np.zeros((DRAWS, num), bool)
    half = num // 2
    return (
        np.concatenate([order < half, nobody], axis=1),
        np.concatenate([(order >= half) & (order < 2 * half), nobody], axis=1),
    )


def _p_value(draws: Floats, value: float) -> float:
    return float((1 + (draws >= value - 1e-9).sum()) / (1 + len(draws)))


def _joint_p_value(found: dict[str, Floats], draws: dict[str, Floats], known: Sequence[str]) -> float:
    """Returns the chance that in some measure the swaps are as far from their mean, in standard deviations."""
    if not known:
        return 1.0
    means, spreads = (np.array([getattr(draws[key], name)() for key in known]) for name in ("mean", "std"))
    spreads = np.maximum(spreads, 1e-12)
    value = ((np.array([found[key][0] for key in known]) - means) / spreads).max()
    scores = (np.stack([draws[key] for key in known], axis=1) - means) / spreads
    return _p_value(scores.max(axis=1), float(value))


@dataclass(frozen=True)
class _Features:
    """What is counted in each text.

    Attributes:
        sequences: How often each of the most frequent sequences of characters occurs, shape (texts, sequences).
        rates: Share of each function word among the words, and then the measures of prose, shape (texts, measures).
        spreads: Standard deviation of each rate over the base's texts; NaN where there is none.
    """

    sequences: NDArray[np.float32]
    rates: Floats
    spreads: Floats

    @classmethod
    def of(cls, texts: Sequence[str], num_base: int) -> "_Features":
        counts = [_count_sequences(text) for text in texts]
        total: Counter[str] = Counter()
        for each in counts:
            total.update(each)
        places = {sequence: place for place, (sequence, _) in enumerate(total.most_common(NUM_FEATURES))}
        sequences = np.zeros((len(texts), len(places)), np.float32)
        for row, each in zip(sequences, counts, strict=True):
            for sequence in each.keys() & places.keys():
                row[places[sequence]] = each[sequence]
        rates = np.array([_rates(Prose.of(text)) for text in texts])
        spreads = np.array(
            [np.nanstd(column) if np.isfinite(column).any() else np.nan for column in rates[:num_base].T]
        )
        return cls(sequences, rates, np.where(spreads > 0, spreads, np.nan))

    def distances(self, first: Members, second: Members) -> dict[str, Floats]:
        """Returns each distance between two groups of texts, for each of several divisions of shape (draws, texts)."""
        grams, others = (side.astype(np.float32) @ self.sequences for side in (first, second))
        norms = np.linalg.norm(grams, axis=1) * np.linalg.norm(others, axis=1)
        cosine = (grams * others).sum(axis=1) / np.maximum(norms, 1e-12)
        apart = np.abs(self._means(first) - self._means(second)) / self.spreads
        of_words, (length, punctuation, variety) = apart[:, : len(FUNCTION_WORDS)], apart[:, len(FUNCTION_WORDS) :].T
        is_used = np.isfinite(self.spreads[: len(FUNCTION_WORDS)])
        delta = of_words[:, is_used].mean(axis=1) if is_used.any() else np.full(len(first), np.nan)
        return dict(zip(MEASURES, (1 - cosine, delta, length, punctuation, variety), strict=True))

    def _means(self, members: Members) -> Floats:
        """Returns the mean rates of some texts, shape (draws, measures); texts without a rate are left out of it."""
        is_known = np.isfinite(self.rates)
        sums = members.astype(float) @ np.where(is_known, self.rates, 0.0)
        counts = members.astype(float) @ is_known.astype(float)
        return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _count_sequences(text: str) -> Counter[str]:
    lower = re.sub(r"\s+", " ", text.lower())
    return Counter(lower[start : start + size] for size in SEQUENCES for start in range(len(lower) - size + 1))


def _rates(prose: Prose) -> list[float]:
    counts, num = Counter(prose.words), max(len(prose.words), 1)
    return [
        *(counts[word] / num for word in FUNCTION_WORDS),
        float(len(prose.words)),
        prose.punctuation,
        prose.type_token,
    ]
