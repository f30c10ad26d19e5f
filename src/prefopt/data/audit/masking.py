"""Masks secrets and personal data in whatever texts of the data people are shown, in findings and in errors."""

import re

SHORTEST = 8
"""No pattern matches fewer characters."""
MARGIN = 1000
"""Characters after an excerpt that are searched too: a secret that begins within it ends before."""
VISIBLE = re.compile(r"\S")
ESCAPE = re.compile(r"\\(?:u[0-9a-f]{4}|[^u])")
"""An escape of JSON: its letter is no part of the word that follows."""


def excerpt(text: str, length: int) -> str:
    """Returns the beginning of a text, in which secrets and personal data are masked before it is cut."""
    return mask_private(text[: length + MARGIN])[:length]


def mask_json(text: str) -> str:
    """Returns a JSON text, or the beginning of one, in which secrets and personal data are masked."""
    return mask_private(text, searched=ESCAPE.sub(lambda escape: " " * len(escape.group()), text))


def mask_private(text: str, *, searched: str | None = None) -> str:
    """Returns a text with stars for all but the first characters of secrets and personal data, as long as before.

    Args:
        text: A whole text: of a part of a secret, nothing tells that it is one.
        searched: The text in which they are searched, if not the same; of the same length.
    """
    if len(text) < SHORTEST:
        return text
    # Imported here: they look at records, and what reads records masks what it quotes in errors.
    from prefopt.data.audit import personal_data, secrets
    from prefopt.data.audit.patterns import Forms, find_hits

    forms = Forms((text if searched is None else searched).encode("ascii", "replace"))
    for patterns, num_clear in (
        (secrets.PATTERNS, secrets.NUM_CLEAR),
        (personal_data.PATTERNS, personal_data.NUM_CLEAR),
    ):
        for hit in find_hits(forms, patterns):
            start = min(hit.start + num_clear, hit.end)
            text = text[:start] + VISIBLE.sub("*", text[start : hit.end]) + text[hit.end :]
    return text
