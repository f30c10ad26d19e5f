"""Code fences of Markdown, in which language models like to put JSON and programs."""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^[ \t]{0,3}```([^\n`]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        language: The first word behind the opening fence, in lower case; may be empty.
        content: The lines between the fences.
        is_closed: Whether it ends before the text does.
    """

    language: str
    content: str
    is_closed: bool


def find_blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a text, in order; the last one may be cut off by the end of the text."""
    fences = list(FENCE.finditer(text))
    blocks = []
    for number, opening in enumerate(fences[::2]):
        closing = fences[2 * number + 1] if 2 * number + 1 < len(fences) else None
        content = text[opening.end() : None if closing is None else closing.start()]
        language = (opening[1].split() or [""])[0].lower()
        blocks.append(Block(language, content.removeprefix("\n"), closing is not None))
    return blocks
