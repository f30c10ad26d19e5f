"""Answers that refuse, and boilerplate of assistants: what is trained here, the model will say more often."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, Texts, by_split, say

HEAD, TAIL = 150, 150
"""Letters at the beginning and at the end of an answer that are searched."""
REFUSES = re.compile(
    r"\b(?:i(?:'m| am) (?:really |very |so |truly )?sorry,? (?:but|i (?:can|am|'m))|i apologi[sz]e,? (?:but|for)"
    r"|i (?:can(?:no|')t|can not|am unable to|am not able to|must decline|have to decline)"
    r"|i'm (?:unable to|not able to|afraid i can)|(?:as|i am|i'm) (?:just )?an? (?:ai\b|artificial|large language|"
    r"language model)|sorry,? but i)"
)
CLOSINGS = ("i hope this helps", "let me know if you have any", "is there anything else i can")
HINT = "(?i:{})".format(
    "|".join([REFUSES.pattern.replace(r"\b", ""), *CLOSINGS]).translate(
        {ord("i"): "[i?]", ord("k"): "[k?]", ord("'"): "['?]"}
    )
)
"""Expression of RE2 that is in each text, in ASCII, that `REFUSES` matches or that has one of `CLOSINGS`.

A question mark stands for what is outside ASCII: an apostrophe, or a letter whose small letter is `i` or `k`.
"""
Rows = NDArray[np.int64]
Seen = dict[str, tuple[Rows, Rows]]


def find_refusals(chunk: Chunk) -> Seen:
    """Returns for each side the rows that refuse, and those that end with a phrase of `CLOSINGS`."""
    found: Seen = {}
    for name, texts in (("chosen", chunk.chosen), ("rejected", chunk.rejected)):
        ends = Texts([text if len(text) <= HEAD + TAIL else text[:HEAD] + text[-TAIL:] for text in texts.each])
        suspects = [(row, texts.each[row]) for row in ends.rows_with(HINT)]
        refusing = [row for row, text in suspects if refuses(text)]
        closing = [row for row, text in suspects if closes(text)]
        found[name] = (chunk.start + np.array(refusing, np.int64), chunk.start + np.array(closing, np.int64))
    return found


def refuses(text: str) -> bool:
    """Returns whether a text begins with a refusal."""
    return REFUSES.search(text[:HEAD].lower().replace("\u2019", "'")) is not None


def closes(text: str) -> bool:
    """Returns whether a text ends with boilerplate."""
    end = text[-TAIL:].lower()
    return any(closing in end for closing in CLOSINGS)


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found:
    rows = by_split([(split, found["chosen"][0]) for split, _, found in seen])
    count = sum(map(len, rows.values()))
    counted = {
        f"{name}_{what}": sum(len(found[name][place]) for _, _, found in seen) / sides.num_rows
        for name in ("chosen", "rejected")
        for place, what in enumerate(("refusals", "boilerplate"))
    }
    examples = [(split, row) for split, found in rows.items() for row in found.tolist()][:MAX_EXAMPLES]
    told = f"{say(count, 'chosen answer')} {'refuses' if count == 1 else 'refuse'} ({count / sides.num_rows:.1%})"
    of_pairs = f", {counted['rejected_refusals']:.1%} of rejected answers do" if sides.has_pairs else ""
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{told}{of_pairs}; {counted['chosen_boilerplate']:.1%} of chosen answers end with boilerplate",
        remedy="Training makes the model refuse more if it is not what you want: drop or rewrite these answers.",
        examples=[Example(source=sides.source(*place), text=sides.show_answer(*place, HEAD)) for place in examples],
        values=counted,
    )


CHECK = Check(examine=find_refusals, conclude=conclude)
