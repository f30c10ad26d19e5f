"""What is printed: whatever a path, data or a program's words hold stays text, and commands can be copied."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that change the direction of writing, and bytes of file names that are no UTF-8."""
ACTS = re.compile(rf"(?![\n\t]){UNPRINTABLE.pattern}")
"""Those that do more to a terminal than to place what follows."""
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """`text` without what acts on a terminal; lines stay lines."""
    return ACTS.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """`text` on one line: breaks and tabs become blanks, what cannot be printed is replaced."""
    return UNPRINTABLE.sub(REPLACEMENT, text.replace("\n", " ").replace("\t", " "))


def quote(value: Path | str) -> str:
    """A word of a command as bash takes it, and on one line; a path never reads as an option."""
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


class Terminal(Console):
    """A console on which our own styles alone act: `[/]`, `:smile:` and escape sequences in a text stay text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that is printed comes through here, in tables and progress bars too."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
