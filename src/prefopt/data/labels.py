"""Labels in KTO's format: they say whether the answer of a demonstration is wanted or to be avoided."""

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal

from prefopt.data.values import describe
from prefopt.data.wording import agree, say_rows

LABELS = ("label", "kto_tag")
"""Names of the label column in KTO's format."""
WANTED = frozenset(
    (
        *("true", "yes", "t", "y", "desirable", "desired", "good", "positive", "preferred", "chosen", "wanted"),
        *("accepted", "accept", "approved", "thumbsup", "up", "upvote", "upvoted", "like", "liked", "👍"),
    )
)
"""Words in lower case, without what stands between their parts."""
UNWANTED = frozenset(
    (
        *("false", "no", "f", "n", "undesirable", "undesired", "bad", "negative", "dispreferred", "rejected"),
        *("unwanted", "reject", "disapproved", "thumbsdown", "down", "downvote", "downvoted", "dislike", "disliked"),
        "👎",
    )
)
MAX_VALUES = 3
"""Values of a column that are told apart: a label has two."""
MISSING = frozenset(("", "null", "none", "nan", "na", "n/a"))
"""Words, in lower case, that tables write into empty cells."""
_BETWEEN = re.compile(r"[\s_-]|\ufe0f|[\U0001f3fb-\U0001f3ff]")
"""What words are joined by, as in `thumbs_up`, and what changes the look of an emoji."""


@dataclass
class _Column:
    """Counts of the values that a column has had in all rows so far."""

    num_wanted: int = 0
    unwanted: dict[str, str] = field(default_factory=dict)
    """Place of each row with an unwanted answer: its value."""
    num_strange: int = 0
    """Values that mean neither wanted nor unwanted."""
    first_strange: str = ""
    is_spelt: bool = False
    """Some unwanted value is a word or a boolean, not a number."""
    has_score: bool = False
    """Some value is a number other than -1, 0 and 1."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of each value; of no more than `MAX_VALUES` values."""
    unknown: list[str] = field(default_factory=list)
    """Those of `counts` that are words which mean neither wanted nor unwanted."""

    def add(self, later: "_Column") -> None:
        """Adds the counts of the rows that follow."""
        self.num_wanted += later.num_wanted
        self.unwanted |= later.unwanted
        self.num_strange += later.num_strange
        self.first_strange = self.first_strange or later.first_strange
        self.is_spelt |= later.is_spelt
        self.has_score |= later.has_score
        for word, count in later.counts.items():
            if word in self.counts or len(self.counts) < MAX_VALUES:
                self.counts[word] = self.counts.get(word, 0) + count
        self.unknown += [word for word in later.unknown if word in self.counts and word not in self.unknown]

    def is_of_another_meaning(self) -> bool:
        """Returns whether the column is no KTO label: it has scores, numbered classes, or mostly other words."""
        if self.has_score and not self.is_spelt:
            return True
        return self.num_strange > self.num_wanted + len(self.unwanted)

    def count(self, value: object, *, is_unknown: bool) -> None:
        """Counts the rows of a value."""
        word = _word(value)
        if word not in self.counts:
            if len(self.counts) == MAX_VALUES:
                return
            self.counts[word] = 0
            if is_unknown and isinstance(value, str) and _number(value) is None:
                self.unknown.append(word)
        self.counts[word] += 1


class Labels:
    """Collects the label columns of all rows; use one object for all files of a data set.

    A single row is ambiguous: 0 may be a KTO label, or the first of 77 classes. All rows together decide it.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, row: dict[str, object], source: str) -> None:
        """Adds the labels of one row, which has messages, or a prompt and a completion."""
        if is_missing(row.get("rejected")):  # else the row is a pair, of which SFT trains the chosen answer
            for column in LABELS:
                if not is_missing(value := row.get(column)):
                    self._add(column, value, source)

    def _add(self, name: str, value: object, source: str) -> None:
        column = self._columns.setdefault(name, _Column())
        verdict = says_wanted(value)
        column.count(value, is_unknown=verdict is None)
        if verdict is None:
            column.num_strange += 1
            column.first_strange = column.first_strange or f"{source}: {describe(value)}"
            column.has_score = column.has_score or _number(value) is not None
        elif verdict:
            column.num_wanted += 1
        else:
            column.unwanted[source] = _word(value)
            column.is_spelt = column.is_spelt or _number(value) is None

    def merge(self, later: "Labels") -> None:
        """Adds the labels of rows that follow."""
        for name, column in later._columns.items():
            self._columns.setdefault(name, _Column()).add(column)

    def find_unwanted(self) -> dict[str, str]:
        """Returns the place of each KTO row whose answer is unwanted, and a sentence about it: SFT would train it."""
        return {
            place: f"'{name}' is {value}: in KTO's format this answer is one to avoid, and SFT would train it."
            for name, column in self._columns.items()
            if not column.is_of_another_meaning()
            for place, value in column.unwanted.items()
        }

    def find_unclear(self) -> dict[str, str]:
        """Returns for each column with two values, of which a word is unknown, what they are: it may be a label."""
        return {
            name: " and ".join(
                f"{describe(word)} in {say_rows(count)}{' (unknown)' if word in column.unknown else ''}"
                for word, count in column.counts.items()
            )
            for name, column in self._columns.items()
            if len(column.counts) == 2 and column.unknown
        }

    @property
    def remedy(self) -> str:
        """What to do about unwanted rows, and about values that are no label."""
        strange = [
            f" {say_rows(column.num_strange)} {agree('[has|have]', column.num_strange)} a value that says neither yes "
            f"nor no, first {column.first_strange}. "
            "Correct or drop them."
            for column in self._columns.values()
            if column.num_strange and not column.is_of_another_meaning()
        ]
        return "Drop them, or remove the column if it means something else." + "".join(strange)


def is_missing(value: object) -> bool:
    """Returns whether a value stands for an empty cell: null, NaN, blank, or a word in `MISSING`."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def says_wanted(value: object) -> bool | None:
    """Returns whether a label means wanted (True) or unwanted (False); None if it means neither."""
    number = _number(value)
    if number is not None:
        return True if number == 1 else False if number in (0, -1) else None
    word = _BETWEEN.sub("", _word(value))
    return True if word in WANTED else False if word in UNWANTED else None


def has_label(row: dict[str, object]) -> bool:
    """Returns whether a row says of its answer that it is wanted, or unwanted."""
    return any(says_wanted(row.get(name)) is not None for name in LABELS)


def _number(value: object) -> float | Decimal | int | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else None


def _word(value: object) -> str:
    return str(value).strip().lower() if isinstance(value, (bool, int, float, Decimal, str)) else "an object"
