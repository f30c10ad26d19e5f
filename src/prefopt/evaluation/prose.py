"""Measures of prose: words, sentences, reading ease, variety and punctuation. They are made for English."""

import re
from collections import Counter
from dataclasses import dataclass
from math import comb, nan

MAX_CHARACTERS = 20_000
"""Beginning of a text that is measured."""
WORD = re.compile(r"\w+(?:['\u2019-]\w+|[.,]\d+)*")
SENTENCE_END = re.compile(r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]]*+(?=\s|$)|\n[^\S\n]*+\n")
MARK = re.compile(r"[^\w\s]")
VOWELS = re.compile(r"[aeiouy]+")
SILENT = re.compile(r"(?:[^aeiouyl]|[aeiouy]l)e$|(?:[^aeiouytdl]|[aeiouy]l)ed$|(?:[^aeiouyscxzghl]|[aeiouy]l)es$")
"""Endings whose vowel is not spoken: `make`, `mile`, `walked`, `makes`; but `table`, `wanted`, `boxes`."""
DRAWN = 20
"""Words of the imagined sample whose variety `type_token` tells."""


@dataclass(frozen=True, slots=True)
class Prose:
    """What is counted in a text; measures are NaN where there is nothing to measure.

    Attributes:
        words: The words, in lower case.
        num_sentences: Sentences with a word; the text's end ends one.
        num_marks: Characters that are neither letters, digits nor blanks.
    """

    words: tuple[str, ...]
    num_sentences: int
    num_marks: int

    @classmethod
    def of(cls, text: str) -> "Prose":
        text = text[:MAX_CHARACTERS]
        words = tuple(word.lower().replace("\u2019", "'") for word in WORD.findall(text))
        num_sentences = sum(WORD.search(part) is not None for part in SENTENCE_END.split(text))
        return cls(words, num_sentences, len(MARK.findall(text)))

    @property
    def sentence_length(self) -> float:
        """Words in a sentence."""
        return len(self.words) / self.num_sentences if self.words else nan

    @property
    def reading_ease(self) -> float:
        """Flesch's (1948) reading ease: 100 is very easy, 30 very hard; at least 0."""
        if not self.words:
            return nan
        syllables = sum(map(count_syllables, self.words)) / len(self.words)
        return max(206.835 - 1.015 * self.sentence_length - 84.6 * syllables, 0.0)

    @property
    def punctuation(self) -> float:
        """Punctuation marks and other signs for each word."""
        return self.num_marks / len(self.words) if self.words else nan

    @property
    def type_token(self) -> float:
        """Share of different words among `DRAWN` words drawn at random: the same for short and for long texts.

        The plain ratio falls with the length of a text; this is its expected value (McCarthy and Jarvis 2007, HD-D).
        """
        num = len(self.words)
        if num < DRAWN:
            return nan
        of_counts, of_draws = Counter(Counter(self.words).values()), comb(num, DRAWN)
        seen = sum(words * (1 - comb(num - count, DRAWN) / of_draws) for count, words in of_counts.items())
        return seen / DRAWN


def count_syllables(word: str) -> int:
    """Returns the syllables of an English word in lower case: its groups of vowels, less a silent ending.

    A rule of thumb: it is wrong for words such as `area` (two vowels side by side that are two syllables).
    """
    groups = len(VOWELS.findall(word))
    return max(groups - (SILENT.search(word) is not None), 1)
