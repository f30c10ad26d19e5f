"""Characters that nobody sees or means: control and zero-width characters, overrides of the writing direction."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from prefopt.data.audit.check import BETWEEN, MAX_EXAMPLES, Check, Chunk, Found, Sides, Texts
from prefopt.data.audit.patterns import Matches, Shown, conclude_matches

IN_ASCII = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
"""Control characters but tab, line feed, and carriage return before a line feed."""
JOINED = r"\u0600-\u0dff\u0e00-\u109f\u1780-\u17ff\u200d\ufe0f\u2600-\u27bf\U0001f000-\U0001faff"
"""Scripts, and pictures, that are written with joiners and zero-width spaces."""
IN_UNICODE = re.compile(
    IN_ASCII.pattern
    + r"|[\x80-\x9f\u2060-\u2064\ufeff\ufffd\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    + rf"|[\u200b-\u200d](?<![{JOINED}].)"
    + r"|[\U000e0001-\U000e007f](?<![\U0001f3f4\U000e0020-\U000e007f].)"
)
NOT_CONTROL = bytes(byte for byte in range(256) if not IN_ASCII.match(chr(byte)) or byte == 13)
NAMES = (
    ("control character", "\x00", "\x9f"),
    ("zero-width character", "\u200b", "\u200d"),
    ("bidirectional override", "\u202a", "\u202e"),
    ("zero-width character", "\u2060", "\u2064"),
    ("bidirectional override", "\u2066", "\u2069"),
    ("lone surrogate", "\ud800", "\udfff"),
    ("byte order mark", "\ufeff", "\ufeff"),
    ("replacement character", "\ufffd", "\ufffd"),
    ("invisible tag", "\U000e0001", "\U000e007f"),
)


def name(character: str) -> str:
    """Returns what kind of character it is."""
    return next(name for name, first, last in NAMES if first <= character <= last)


def repair(text: str) -> str:
    """Returns `text` without what nobody sees; U+FFFD stays, since what it stands for is lost."""
    if text.isascii() and not IN_ASCII.search(text):
        return text
    return IN_UNICODE.sub(_replace, text)


def _replace(match: re.Match[str]) -> str:
    found = match.group()
    return {"\r": "\n", "\ufffd": "\ufffd"}.get(found, "")


def examine(chunk: Chunk) -> Matches:
    """Returns where such characters stand."""
    rows: set[int] = set()
    counts: Counter[str] = Counter()
    shown: list[Shown] = []
    for field, texts in (("prompt", chunk.prompts), ("chosen", chunk.chosen), ("rejected", chunk.rejected)):
        for row in _suspects(texts):
            found = [match.start() for match in IN_UNICODE.finditer(texts.each[row])]
            if found:
                rows.add(row)
                counts.update(name(texts.each[row][place]) for place in found)
                shown.append(_show(texts.each[row], found[0], row, field))
    return Matches(np.array(sorted(rows), np.int64), counts, sorted(shown)[:MAX_EXAMPLES])


def _suspects(texts: Texts) -> list[int]:
    """Returns the rows worth a closer look, by ways that cost less than searching each."""
    are_ascii = len(texts.ascii.translate(None, NOT_CONTROL)) == max(0, len(texts.each) - 1) * BETWEEN.count("\x00")
    if are_ascii and texts.joined.isascii():
        return []
    return [row for row, text in enumerate(texts.each) if not (are_ascii and text.isascii())]


def _show(text: str, place: int, row: int, field: str) -> Shown:
    piece = text[max(0, place - 30) : place + 30]
    return Shown(row, f"{name(text[place])} U+{ord(text[place]):04X} in {field}", ascii(piece)[1:-1])


def conclude(seen: Sequence[tuple[str, int, Matches]], sides: Sides) -> Found:
    """Returns how many rows have such characters, by kind."""
    return conclude_matches(
        seen,
        sides,
        what="control or invisible characters",
        remedy="prefopt audit --fix removes them; text with U+FFFD was damaged when it was decoded: take its source",
    )


CHECK = Check(examine=examine, conclude=conclude)
