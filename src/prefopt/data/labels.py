"""Labels of demonstrations, by which KTO's data say that an answer is one that a model shall avoid."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from prefopt.data.values import describe
from prefopt.process.errors import UserError

LABELS = ("label", "kto_tag")
"""Columns in which KTO's rows say whether an answer is wanted."""
WANTED = frozenset(
    ("true", "yes", "t", "y", "desirable", "desired", "good", "positive", "preferred", "chosen", "wanted", "accepted")
)
UNWANTED = frozenset(
    ("false", "no", "f", "n", "undesirable", "undesired", "bad", "negative", "dispreferred", "rejected", "unwanted")
)
MISSING = frozenset(("", "null", "none", "nan", "na", "n/a"))
"""What tables write where a cell is empty."""


@dataclass
class _Column:
    """What a column has held until now."""

    num_wanted: int = 0
    num_unwanted: int = 0
    num_strange: int = 0
    """Values that say neither."""
    first_unwanted: str = ""
    first_strange: str = ""
    is_spelt: bool = False
    """Some unwanted value is a word or a boolean, and no number."""
    has_score: bool = False
    """Some value is another number than -1, 0 and 1."""

    def is_of_another_meaning(self) -> bool:
        """Returns whether it holds scores, numbered classes, or mostly words that say neither yes nor no."""
        if self.has_score and not self.is_spelt:
            return True
        return self.num_strange > self.num_wanted + self.num_unwanted


class Labels:
    """What the columns of demonstrations say about the answers; one object for all files of a data set.

    One row does not tell: 0 may be a label of KTO's, or the first of 77 classes. All rows do.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, row: dict[str, Any], source: str) -> None:
        """Takes in what one row of messages, or of prompt and completion, says."""
        if is_missing(row.get("rejected")):  # else a pair, of which SFT trains the better answer
            for column in LABELS:
                if not is_missing(value := row.get(column)):
                    self._add(column, value, source)

    def _add(self, name: str, value: Any, source: str) -> None:
        column = self._columns.setdefault(name, _Column())
        verdict = says_wanted(value)
        if verdict is None:
            column.num_strange += 1
            column.first_strange = column.first_strange or f"{source}: {describe(value)}"
            column.has_score = column.has_score or _number(value) is not None
        elif verdict:
            column.num_wanted += 1
        else:
            column.num_unwanted += 1
            column.first_unwanted = column.first_unwanted or f"{source}: '{name}' is {_word(value)}"
            column.is_spelt = column.is_spelt or _number(value) is None

    def require_wanted(self) -> None:
        """Refuses rows of KTO's with answers to avoid.

        Raises:
            UserError: Naming the first, and the first value that is no label of KTO's if there is one.
        """
        for column in self._columns.values():
            if column.num_unwanted and not column.is_of_another_meaning():
                strange = (
                    f" {column.num_strange} row(s) have a value that says neither yes nor no, first "
                    f"{column.first_strange}. Correct or drop them."
                    if column.num_strange
                    else ""
                )
                raise UserError(
                    f"{column.first_unwanted}: in KTO's format this answer is one to avoid, and SFT would train it "
                    f"({column.num_unwanted} such row(s)). Drop them, or remove the column if it means something "
                    f"else.{strange}"
                )


def is_missing(value: Any) -> bool:
    """Returns whether a cell is empty, as JSON, Parquet or a table writes it."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def says_wanted(value: Any) -> bool | None:
    """Returns whether a label says that its answer is wanted; None if it says neither."""
    number = _number(value)
    if number is not None:
        return True if number == 1 else False if number in (0, -1) else None
    word = _word(value)
    return True if word in WANTED else False if word in UNWANTED else None


def _number(value: Any) -> float | Decimal | int | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else None


def _word(value: Any) -> str:
    return str(value).strip().lower() if isinstance(value, (bool, int, float, Decimal, str)) else "an object"
