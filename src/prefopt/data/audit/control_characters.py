"""Characters that nobody sees or means: control and zero-width characters, overrides of the writing direction."""

import re
from collections import Counter
from functools import partial

import numpy as np

from prefopt.data.audit.check import BETWEEN, MAX_EXAMPLES, Check, Chunk, Texts
from prefopt.data.audit.masking import mask_private
from prefopt.data.audit.patterns import Matches, Shown, conclude_matches, first_of_rows

IN_ASCII = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
"""Control characters but tab, line feed, and carriage return before a line feed."""
JOINED = r"\u0600-\u0dff\u0e00-\u109f\u1780-\u17ff\u200d\ufe0f\u2600-\u27bf\U0001f000-\U0001faff"
"""Scripts, and pictures, that are written with joiners and zero-width spaces."""
IN_UNICODE = re.compile(
    IN_ASCII.pattern
    + r"|[\x80-\x9f\u2060-\u2064\ufeff\ufffd\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    + rf"|[\u200b-\u200d](?<![{JOINED}].)(?![{JOINED}])"
    + r"|[\U000e0001-\U000e007f](?<![\U0001f3f4\U000e0020-\U000e007f].)"
)
LATEX = (
    (re.compile(r"\x0c(?=rac\b|rac\{|orall\b|lat\b)"), r"\\f"),
    (re.compile(r"\x08(?=eta\b|egin\b|ar\b|inom\b|oxed\b|mod\b|oldsymbol\b)"), r"\\b"),
)
"""LaTeX whose backslash and first letter were read as one control character, as JSON and Python read them."""
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
    """Returns `text` without what nobody sees.

    What was lost when text was decoded stays (U+FFFD and U+0080 to U+009F: only the source has it). A backslash that
    was read as an escape comes back: before `rac`, a form feed was the beginning of `\\frac`.
    """
    if text.isascii() and not IN_ASCII.search(text):
        return text
    for escaped, command in LATEX:
        text = escaped.sub(command, text)
    return IN_UNICODE.sub(_replace, text)


def _replace(match: re.Match[str]) -> str:
    character = match.group()
    if character == "\r":
        return "\n"
    return character if "\x80" <= character <= "\x9f" or character == "\ufffd" else ""


def examine(chunk: Chunk) -> Matches:
    """Returns where such characters stand."""
    rows: set[int] = set()
    counts: Counter[str] = Counter()
    shown: list[Shown] = []
    for field, texts in (("prompt", chunk.prompts), ("chosen", chunk.chosen), ("rejected", chunk.rejected)):
        first: list[Shown] = []
        for row in _suspects(texts):
            found = [match.start() for match in IN_UNICODE.finditer(texts.each[row])]
            if found:
                rows.add(row)
                counts.update(name(texts.each[row][place]) for place in found)
                if len(first) < MAX_EXAMPLES:
                    first.append(_show(texts.each[row], found[0], row, field))
        shown += first
    return Matches(np.array(sorted(rows), np.int64), counts, first_of_rows(shown))


def _suspects(texts: Texts) -> list[int]:
    """Returns the rows worth a closer look, by ways that cost less than searching each."""
    letters = np.frombuffer(texts.ascii, np.uint8)
    is_control = (letters < ord(" ")) & (letters != ord("\t")) & (letters != ord("\n")) | (letters == 0x7F)
    num_control = np.count_nonzero(is_control) - max(0, len(texts.each) - 1)  # one stands between two texts
    if num_control:
        num_control -= texts.ascii.count(b"\r\n") - texts.ascii.count(b"\r" + BETWEEN.encode())
    if not num_control and texts.joined.isascii():
        return []
    return [row for row, text in enumerate(texts.each) if num_control or not text.isascii()]


def _show(text: str, place: int, row: int, field: str) -> Shown:
    text = mask_private(text)
    piece = IN_UNICODE.sub(lambda match: f"<U+{ord(match.group()):04X}>", text[max(0, place - 30) : place + 30])
    return Shown(row, f"{name(text[place])} in {field}", piece)


CHECK = Check(
    examine=examine,
    conclude=partial(
        conclude_matches,
        what="control or invisible characters",
        remedy="prefopt audit --fix removes them; U+FFFD, and U+0080 to U+009F, stand for what was lost when the text "
        "was decoded: read its source again.",
    ),
)
