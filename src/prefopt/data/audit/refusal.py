"""Answers that refuse, and boilerplate of assistants: what is trained here, the model will say more often."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, Texts, by_split, say

HEAD, TAIL = 150, 150
"""Letters at the beginning and at the end of an answer that are searched."""
HINTS = ("sorry", "apolog", "cannot", "can't", "can not", "unable", "not able", "an ai", "language model", "decline")
"""One of them is in each text that `REFUSES` matches: finding a word is ten times as fast as matching a pattern."""
REFUSES = re.compile(
    r"\b(?:i(?:'m| am) (?:really |very |so |truly )?sorry,? (?:but|i (?:can|am|'m))|i apologi[sz]e,? (?:but|for)"
    r"|i (?:can(?:no|')t|can not|am unable to|am not able to|must decline|have to decline)"
    r"|i'm (?:unable to|not able to|afraid i can)|(?:as|i am|i'm) (?:just )?an? (?:ai\b|artificial|large language|"
    r"language model)|sorry,? but i)"
)
CLOSINGS = ("i hope this helps", "let me know if you have any", "is there anything else i can")
Rows = NDArray[np.int64]
Seen = dict[str, tuple[Rows, Rows]]


def find_refusals(chunk: Chunk) -> Seen:
    """Returns for each side the rows that refuse, and those that end with a phrase of `CLOSINGS`."""
    sides = {"chosen": chunk.chosen, "rejected": chunk.rejected}
    return {name: (chunk.start + _refusing(texts), chunk.start + _closing(texts)) for name, texts in sides.items()}


def _refusing(texts: Texts) -> Rows:
    heads = [text[:HEAD].lower().replace("\u2019", "'") for text in texts.each]
    return np.array([row for row in _rows_with(heads, HINTS) if REFUSES.search(heads[row])], np.int64)


def _closing(texts: Texts) -> Rows:
    return np.array(_rows_with([text[-TAIL:].lower() for text in texts.each], CLOSINGS), np.int64)


def _rows_with(texts: Sequence[str], words: Sequence[str]) -> list[int]:
    """Returns the rows, ascending, that hold one of the words."""
    return sorted({row for word in words for row, text in enumerate(texts) if word in text})


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found:
    rows = by_split([(split, found["chosen"][0]) for split, _, found in seen])
    count = sum(map(len, rows.values()))
    counted = {
        f"{name}_{what}": sum(len(found[name][place]) for _, _, found in seen) / sides.num_rows
        for name in ("chosen", "rejected")
        for place, what in enumerate(("refusals", "boilerplate"))
    }
    examples = [(split, row) for split, found in rows.items() for row in found.tolist()][:MAX_EXAMPLES]
    of_pairs = f", {counted['rejected_refusals']:.1%} of rejected answers do" if sides.has_pairs else ""
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{say(count, 'chosen answer')} {'refuses' if count == 1 else 'refuse'}{of_pairs}; "
        f"{counted['chosen_boilerplate']:.1%} of chosen answers end with boilerplate",
        remedy="Training makes the model refuse more if it is not what you want: drop or rewrite these answers.",
        examples=[Example(source=sides.source(*place), text=sides.show_answer(*place, HEAD)) for place in examples],
        values=counted,
    )


CHECK = Check(examine=find_refusals, conclude=conclude)
