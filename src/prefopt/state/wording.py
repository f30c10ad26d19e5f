"""Text for a terminal: nothing in a name or a log acts on it, and every command can be copied."""

import os
import re
import shlex
from pathlib import Path

from prefopt.state.tail import ANSI

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that change the direction of writing, and bytes of file names that are no UTF-8."""
REPLACEMENT = "\ufffd"


def clean(text: str) -> str:
    """The first line of `text` that says something, without what acts on a terminal."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines()]
    return UNPRINTABLE.sub(REPLACEMENT, next(filter(None, lines), ""))


def clean_name(text: str) -> str:
    """A name on one line: what cannot be printed is replaced, line breaks too."""
    return UNPRINTABLE.sub(REPLACEMENT, text)


def quote(value: Path | str) -> str:
    """A word of a command as a shell takes it, and on one line; a path never reads as an option."""
    text = str(value)
    if isinstance(value, Path) and text.startswith("-"):
        text = f"./{text}"
    if UNPRINTABLE.search(text) is None:
        return shlex.quote(text)
    return "$'" + "".join(map(_escape, text)) + "'"


def _escape(letter: str) -> str:
    """A letter between $' and ', as bash reads it."""
    if letter in "\\'":
        return f"\\{letter}"
    if UNPRINTABLE.match(letter) is None:
        return letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def describe_time(seconds: float) -> str:
    """Seconds as 0:47, 1:02:03 or 3d 04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 72:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
