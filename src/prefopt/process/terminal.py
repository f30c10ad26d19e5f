"""Safe printing: no path, data or other program's output controls the terminal, and shown commands can be copied."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that change the writing direction, and bytes of file names that are not UTF-8."""
ACTS = re.compile(rf"(?![\n\t]){UNPRINTABLE.pattern}")
"""All of these but line feed and tab, which only position the text that follows."""
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """Replaces characters of `text` that control a terminal; line breaks and tabs stay."""
    return ACTS.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """`text` on one line: breaks and tabs become blanks, what cannot be printed is replaced."""
    return UNPRINTABLE.sub(REPLACEMENT, text.replace("\n", " ").replace("\t", " "))


def quote(value: Path | str) -> str:
    """Quotes a word of a command for bash, on one line; a path that begins with `-` gets `./` in front."""
    text = str(value)
    if isinstance(value, Path) and text.startswith("-"):
        text = f"./{text}"
    if UNPRINTABLE.search(text) is None:
        return shlex.quote(text)
    return "$'" + "".join(map(_escape, text)) + "'"


def _escape(letter: str) -> str:
    """Escapes a character for bash's $'...' quotes."""
    if letter in "\\'":
        return f"\\{letter}"
    if UNPRINTABLE.match(letter) is None:
        return letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


class Terminal(Console):
    """A console that interprets nothing in a text: `[/]`, `:smile:` and escape sequences are shown as text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Cleans every text that is printed; tables and progress bars pass through here too."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
