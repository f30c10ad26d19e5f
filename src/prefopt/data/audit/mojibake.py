"""Text that was decoded by the wrong encoding, such as â€™ for an apostrophe."""

import re
from collections import Counter
from functools import partial

import numpy as np

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk
from prefopt.data.audit.masking import mask_private
from prefopt.data.audit.patterns import Matches, Shown, conclude_matches, first_of_rows

SUSPECT = re.compile("[\u0080-\u024f\u0390-\u045f\u2013-\u2265][\u0080-\u2265\ufffd]")
"""Two such characters stand beside each other wherever UTF-8 was read as an encoding of one byte a character."""


def repair(text: str) -> str:
    """Returns what `text` was before it was decoded wrongly; other text as it is."""
    if text.isascii() or not SUSPECT.search(text):
        return text
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    return fix_encoding(text) if is_bad(text) else text


def examine(chunk: Chunk) -> Matches:
    """Returns the texts that can be repaired."""
    rows: set[int] = set()
    counts: Counter[str] = Counter()
    shown: list[Shown] = []
    for field, texts in (("prompt", chunk.prompts), ("chosen", chunk.chosen), ("rejected", chunk.rejected)):
        if texts.joined.isascii():
            continue
        for row, text in enumerate(texts.each):
            if repair(text) != text:
                rows.add(row)
                counts[field] += 1
                if counts[field] <= MAX_EXAMPLES:
                    shown.append(_show(text, row, field))
    return Matches(np.array(sorted(rows), np.int64), counts, first_of_rows(shown))


def _show(text: str, row: int, field: str) -> Shown:
    text = mask_private(text)
    repaired = repair(text)
    place = next((i for i, (old, new) in enumerate(zip(text, repaired, strict=False)) if old != new), 0)
    start = max(0, place - 20)
    return Shown(row, f"in {field}; meant: {repaired[start : place + 20]}", text[start : place + 20])


CHECK = Check(
    examine=examine,
    conclude=partial(
        conclude_matches,
        what="text that was decoded wrongly",
        remedy="prefopt audit --fix restores it; or read the source again with its right encoding.",
    ),
    needs="ftfy",
)
