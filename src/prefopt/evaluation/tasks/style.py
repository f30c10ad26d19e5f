"""Answers in a style: a classifier's opinion, words to avoid, and plain measures of prose."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.tasks import SETTING, StyleTaskConfig
from prefopt.evaluation.prose import MAX_CHARACTERS, Prose
from prefopt.evaluation.tasks.style_classifier import StyleClassifier
from prefopt.evaluation.tasks.task import Answered, Checked, TaskContext, quotable
from prefopt.process.errors import UserError

MEASURES = ("reading_ease", "sentence_length", "type_token", "punctuation")
"""Of prose; none has a better end: what is right depends on the style."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StyleTask:
    """Checks the style of answers.

    `in_style` is the probability that an answer is a chosen one rather than a rejected one, by a classifier of letters
    that learned from the training pairs; how far to trust it stands in the details. `banned` is whether an answer has
    a banned word.

    Attributes:
        config: Its settings.
        classifier: None if there is none.
        why_no_classifier: Why not; else empty.
    """

    config: StyleTaskConfig
    classifier: StyleClassifier | None
    why_no_classifier: str = ""

    @classmethod
    def learn(cls, config: StyleTaskConfig, context: TaskContext) -> "StyleTask":
        """Learns the style from the training pairs.

        Raises:
            UserError: It cannot be learned, and no words are banned: nothing would say which answer is better.
        """
        learned = StyleClassifier.learn(context.trained, config.num_folds, context.seed)
        if isinstance(learned, StyleClassifier):
            return cls(config, learned)
        _require_words(config, learned)
        logger.warning("evaluation: %s: the style is not learned: %s", config.name, learned)
        return cls(config, None, learned)

    @classmethod
    def check_pairs(cls, config: StyleTaskConfig, context: TaskContext) -> None:
        """Refuses training pairs that teach no style where no words are banned, before anything is answered.

        Raises:
            UserError: As for `learn`.
        """
        _require_words(config, StyleClassifier.find_obstacle(context.trained))

    @property
    def name(self) -> str:
        return self.config.name

    def check(self, answers: Sequence[Answered]) -> Checked:
        texts = [answered.answer for answered in answers]
        values: dict[str, Any] = {}
        details: dict[str, Any] = {"num_empty": sum(not text.strip() for text in texts)}
        if self.classifier is not None:
            values["in_style"] = self.classifier.read(texts)
            details["classifier"] = self.classifier.quality
        else:
            details["classifier"] = {"left_out": self.why_no_classifier}
        if self.config.banned:
            found = find_words(self.config.banned, texts)
            values["banned"] = found.any(axis=1)
            words = [quotable(word) for word in self.config.banned]
            details["banned"] = dict(zip(words, found.sum(axis=0).tolist(), strict=True))
        prose = [Prose.of(text) for text in texts]
        values |= {key: np.array([getattr(each, key) for each in prose], float) for key in MEASURES}
        details["num_cut"] = sum(len(text) > MAX_CHARACTERS for text in texts)
        better = {"in_style": True, "banned": False}
        return Checked(values, {key: better[key] for key in values if key in better}, details)


def _require_words(config: StyleTaskConfig, obstacle: str) -> None:
    """Refuses a style that is not learned, for the reason `obstacle`, where no words are banned either."""
    if obstacle and not config.banned:
        raise UserError(
            f"{SETTING}: {config.name}: the style cannot be learned: {obstacle}. Name words to avoid (banned: "
            "[...]), or leave the task out: nothing else says which answer is better."
        )


def find_words(words: Sequence[str], texts: Sequence[str]) -> NDArray[np.bool_]:
    """Returns which words are in which text, shape (texts, words): whole ones, in upper and lower case alike.

    Apostrophes are alike too, and so are blanks within a phrase.
    """
    patterns = [re.compile(_pattern(word), re.IGNORECASE) for word in words]
    return np.array(
        [[pattern.search(text) is not None for pattern in patterns] for text in map(_plain, texts)], bool
    ).reshape(len(texts), len(words))


def _pattern(word: str) -> str:
    phrase = r"\s+".join(re.escape(part) for part in _plain(word).split())
    return rf"(?<!\w){phrase}(?!\w)"


def _plain(text: str) -> str:
    return text.replace("\u2019", "'")
