"""Finds strings of a known form, such as keys and card numbers, in many texts at once, and shows them masked."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, Texts, by_split, say

MAX_MATCH = 400
"""Characters after an anchor that are searched."""
SHAPE = bytes.maketrans(b"123456789BCDEFGHIJKLMNOPQRSTUVWXYZ", b"0" * 9 + b"A" * 25)


@dataclass(frozen=True)
class Forms:
    """A text in forms of one length, in which literals are searched; those outside ASCII are question marks."""

    plain: bytes

    @cached_property
    def lower(self) -> bytes:
        return self.plain.lower()

    @cached_property
    def shape(self) -> bytes:
        """With 0 for each digit and A for each capital letter."""
        return self.plain.translate(SHAPE)


class Hit(NamedTuple):
    """Start and end of a match within a text, and what it is called in findings, in the singular."""

    start: int
    end: int
    kind: str


def accept_all(text: str) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Strings of one kind, each of which contains a literal.

    Attributes:
        kind: What it is called in findings, in the singular.
        anchors: Every match contains one of these; only around them is anything searched. Searching a literal costs
            a fiftieth of searching an expression.
        regex: The expression; it is searched in the plain form.
        within: The form in which the anchors are searched.
        reach: How many characters before the anchor a match may begin.
        accept: Whether a match is one, for what an expression cannot tell.
    """

    kind: str
    anchors: tuple[bytes, ...]
    regex: re.Pattern[bytes]
    within: Literal["plain", "lower", "shape"] = "plain"
    reach: int = 0
    accept: Callable[[str], bool] = accept_all

    @property
    def hint(self) -> str:
        """Expression of RE2 that is in every text with an anchor."""
        literals = "|".join(re.escape(anchor.decode()) for anchor in self.anchors)
        if self.within == "shape":
            return literals.replace("0", "[0-9]").replace("A", "[A-Z]")
        return f"(?i:{literals})" if self.within == "lower" else literals

    def find(self, forms: Forms) -> Iterator[Hit]:
        """Yields all matches of a text."""
        searched: bytes = getattr(forms, self.within)
        for anchor in self.anchors:
            place = searched.find(anchor)
            while place >= 0:
                match = self._match_around(forms.plain, place)
                if match and self.accept(match.group().decode()):
                    yield Hit(*match.span(), self.kind)
                place = searched.find(anchor, max(place + 1, match.end() if match else 0))

    def _match_around(self, text: bytes, place: int) -> re.Match[bytes] | None:
        """Returns the match that covers the character at `place`."""
        if not self.reach:
            return self.regex.match(text, place)
        for match in self.regex.finditer(text, max(0, place - self.reach), place + MAX_MATCH):
            if match.end() > place:
                return match if match.start() <= place else None
        return None


class Shown(NamedTuple):
    """A match as people may see it."""

    row: int
    detail: str
    masked: str


@dataclass(frozen=True)
class Matches:
    """The matches of a chunk.

    Attributes:
        rows: The rows with a match, counted from 0 within the chunk, ascending.
        counts: Number of matches by kind.
        shown: The first match of each of the first rows, masked.
    """

    rows: NDArray[np.int64]
    counts: Counter[str]
    shown: list[Shown]


def check_for(patterns: Sequence[Pattern], *, num_clear: int, what: str, remedy: str) -> Check[Matches]:
    """Returns the check that finds strings of some patterns; see `find_matches` and `conclude_matches`."""
    return Check(
        examine=partial(find_matches, patterns=patterns, num_clear=num_clear),
        conclude=partial(conclude_matches, what=what, remedy=remedy),
    )


def find_matches(chunk: Chunk, *, patterns: Sequence[Pattern], num_clear: int) -> Matches:
    """Returns where prompts, answers and tools match; of overlapping matches only that of the first pattern.

    Args:
        chunk: The rows.
        patterns: What to find, the more special first.
        num_clear: Characters at the beginning of a match that are not masked.
    """
    rows: list[int] = []
    counts: Counter[str] = Counter()
    shown: list[Shown] = []
    suspects = chunk.all_texts.rows_with("|".join(pattern.hint for pattern in patterns))
    fields = {"prompt": chunk.prompts, "chosen": chunk.chosen, "rejected": chunk.rejected, "tools": chunk.calls}
    for field, every in fields.items():
        texts = Texts([every.each[row] for row in suspects])
        hits = find_hits(Forms(texts.ascii), patterns)
        places = [suspects[place] for place in texts.rows_at([hit.start for hit in hits]).tolist()]
        rows += places
        counts.update(hit.kind for hit in hits)
        for row, hit in zip(places, hits, strict=True):
            masked = mask(texts.joined[hit.start : hit.end], num_clear)
            shown.append(Shown(row, f"{hit.kind} in {field}", masked))
    return Matches(np.unique(np.array(rows, np.int64)), counts, first_of_rows(shown))


def find_hits(forms: Forms, patterns: Sequence[Pattern]) -> list[Hit]:
    """Returns all matches of a text; of overlapping ones only that of the first pattern."""
    hits: list[Hit] = []
    for pattern in patterns:
        for hit in pattern.find(forms):
            if all(hit.end <= other.start or hit.start >= other.end for other in hits):
                hits.append(hit)
    return hits


def first_of_rows(shown: Sequence[Shown]) -> list[Shown]:
    """Returns one match of each row, the first in its fields' order, of as many rows as a finding names."""
    by_row: dict[int, Shown] = {}
    for match in shown:
        by_row.setdefault(match.row, match)
    return [by_row[row] for row in sorted(by_row)[:MAX_EXAMPLES]]


def mask(text: str, num_clear: int) -> str:
    """Returns the first characters of `text`, and stars."""
    return text[:num_clear] + "*" * min(12, max(3, len(text) - num_clear))


def conclude_matches(seen: Sequence[tuple[str, int, Matches]], sides: Sides, *, what: str, remedy: str) -> Found:
    """Returns the finding of all chunks: how many rows have a match, and how many matches of each kind there are.

    Args:
        seen: As `Check.conclude` gets it.
        sides: The records.
        what: What all of them are, in the plural.
        remedy: What to do about them.
    """
    counts: Counter[str] = sum((matches.counts for _, _, matches in seen), Counter())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    rows = by_split([(split, matches.rows + start) for split, start, matches in seen])
    num_found = sum(map(len, rows.values()))
    examples = [
        Example(source=sides.source(split, start + row), detail=detail, text=masked)
        for split, start, matches in seen
        for row, detail, masked in matches.shown
    ]
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=num_found / max(1, sides.num_rows),
        summary=f"{say(num_found, 'row has', 'rows have')} {what} ({kinds})" if num_found else f"no row has {what}",
        remedy=remedy if num_found else "",
        examples=examples[:MAX_EXAMPLES],
        values={"matches": dict(counts)},
    )
