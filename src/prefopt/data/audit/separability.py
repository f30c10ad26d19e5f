"""Whether words alone tell the chosen answer: DPO then learns these words, and little else."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from prefopt.data.audit.bag_of_words import TOO_FEW, Bags, Judged, examine, judge, number_features
from prefopt.data.audit.check import Check, Found, Sides, as_text
from prefopt.data.audit.masking import mask_private
from prefopt.data.audit.words import split_words
from prefopt.data.records import PreferencePair

NUM_WORDS = 8
"""Words that are named for each side."""
MAX_PAIRS = 1_000
"""Pairs whose words are looked through for names of the features."""
SHORTCUT = 0.9
"""Accuracy from which on the summary names the words."""


def conclude(seen: Sequence[tuple[str, int, Bags]], sides: Sides) -> Found | str:
    """Returns how often the classifier is right about prompts that it never saw; the gate compares the lower bound."""
    judged = judge(seen)
    if judged is None:
        return TOO_FEW
    low, high = judged.interval
    words = _telling_words(judged, sides)
    told = f"; most telling: {_quote(words['chosen'])} (chosen), {_quote(words['rejected'])} (rejected)"
    return Found(
        rows={},
        num_rows=len(judged.scores),
        share=judged.accuracy,
        gauge=low,
        summary=f"a bag of words tells the chosen answer of unseen prompts in {judged.accuracy:.1%} of "
        f"{len(judged.scores):,} pairs (95 % CI {low:.1%} to {high:.1%}{judged.sampled}), the length alone in "
        f"{judged.length_accuracy:.1%}{told if judged.accuracy >= SHORTCUT else ''}",
        remedy="If these words are not what you want to teach, add pairs in which the chosen answer has none of them, "
        "or the rejected one has them too."
        if low >= SHORTCUT
        else "",
        values={
            "accuracy": {"value": judged.accuracy, "ci95": [low, high], "n": len(judged.scores)},
            "length_accuracy": judged.length_accuracy,
            "words": words,
        },
    )


def _telling_words(judged: Judged, sides: Sides) -> dict[str, list[str]]:
    """Returns the words, and pairs of words, with the largest weights for either side."""
    order = np.argsort(judged.coefficients)
    wanted = {"chosen": order[::-1][: 3 * NUM_WORDS].tolist(), "rejected": order[: 3 * NUM_WORDS].tolist()}
    names = _name_features({*wanted["chosen"], *wanted["rejected"]}, sides)
    return {
        side: [names[feature] for feature in features if feature in names][:NUM_WORDS]
        for side, features in wanted.items()
    }


def _name_features(wanted: set[int], sides: Sides) -> dict[int, str]:
    """Returns for each feature the word, or two words, that most often stand behind it."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for record in sides.records["train" if "train" in sides.records else "held_out"][:MAX_PAIRS]:
        assert isinstance(record, PreferencePair), "the check is for pairs"
        for answer in (record.chosen, record.rejected):
            text = as_text(answer)
            words = split_words(text)
            names = [*words, *(f"{one} {two}" for one, two in pairwise(words))]
            features, _ = number_features([text])
            for feature, name in zip(features.tolist(), names, strict=True):
                if feature in wanted:
                    counts[feature][mask_private(name).lower()] += 1
    return {feature: found.most_common(1)[0][0] for feature, found in counts.items()}


def _quote(words: Sequence[str]) -> str:
    return ", ".join(f"'{word}'" for word in words[:4])


CHECK = Check(
    kinds=("preference",), examine=examine, conclude=conclude, needs="sklearn", is_slow=True, is_of_whole=True
)
