"""Rows that cannot be used: all of them are seen before one error tells every class, or they are left out and counted.

Errors of a whole file (missing, damaged, not UTF-8) are told at once and are not collected here.
"""

import re
from dataclasses import dataclass, field

from prefopt.config.choices import OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.process.errors import UserError

MAX_PLACES = 4
"""Most places of rows that are named for a class of defects."""
MAX_CLASSES = 8
"""Most classes of defects that are told apart; a file that was misread may have as many as rows."""
OTHERS = "others"
"""In the place of what tells classes apart: rows of all further classes."""
MISREAD_SHARE = 0.5
"""If more than this share of rows is bad, the rows may be good, and read as something that they are not."""
MISREAD = (
    "Most rows are bad, so they may be read as something that they are not: see algorithm, data.format, data.columns "
    "and data.max_length."
)

UNREADABLE = "unreadable"
"""Kind of the rows that cannot be read, rendered or tokenised."""

_VALUES = re.compile(r"\(?\"(?:[^\"\\]|\\.)*?(?:\"|\\?\.\.\.\))\)?|(?<!\w)'[^']*'|\([^()]*\)|\d+")
"""What differs between two messages of the same class: names, values and numbers.

Values first: a text of the data, whole or cut (`"He said (b...)`), may hold brackets and apostrophes of its own.
"""


@dataclass
class BadClass:
    """Rows with the same defect, and what is said of the first of them."""

    switch: str
    found: str
    remedy: str
    count: int = 0
    places: list[str] = field(default_factory=list)
    largest: int = 0
    is_mixed: bool = False
    """The other rows may have other defects than the first."""

    def __str__(self) -> str:
        first, *others = self.places
        more = ", ..." if self.count > len(self.places) else ""
        rows = f"and other defects, in {self.count} rows" if self.is_mixed else f"so in {self.count} rows"
        also = f" ({rows}, also {', '.join(others)}{more})" if others else ""
        longest = f"; the longest has {self.largest}" if self.largest else ""
        found = self.found.removesuffix(".") if also or longest else self.found
        stop = "" if found.endswith((".", ".)")) else "."
        return f"{first}: {found}{also}{longest}{stop} {self.remedy}".rstrip()


class BadRows:
    """The rows of one data set that cannot be used, by class of defect; of each class only a few places are kept."""

    def __init__(self, setting: str, config: DataConfig) -> None:
        self.setting = setting
        """The setting that names the data set, such as `data.train`."""
        self.num_rows = 0
        """All its rows, whether they can be used or not."""
        self._config = config
        self._is_whole = True  # else it is merged: which classes are told apart is decided there
        self._classes: dict[tuple[str, str], BadClass] = {}
        self._num_skipped: dict[str, int] = {}
        self._first_skipped: dict[str, str] = {}

    def add(
        self, place: str, found: str, *, switch: str = "on_bad", kind: str = "", remedy: str = "", size: int = 0
    ) -> None:
        """Adds a row; the caller leaves it out in any case.

        Args:
            place: `path:line`.
            found: What is wrong with it, as a sentence after the place.
            switch: The setting of `data` that decides: `on_bad`, or a switch of its own.
            kind: Name of the defect, by which skipped rows are counted; by default the switch.
            remedy: What to do about rows of this class.
            size: A number of which the largest is told: the tokens of a row that is too long.
        """
        kind = kind or switch
        if self.skips(switch):
            self._num_skipped[kind] = self._num_skipped.get(kind, 0) + 1
            self._first_skipped.setdefault(kind, f"{place}: {found}")
            return
        key = (kind, _VALUES.sub("", found) if switch == "on_bad" else "")
        self._add_class(key, BadClass(switch, found, remedy, 1, [place], size))

    def _add_class(self, key: tuple[str, str], more: BadClass) -> None:
        if self._is_whole and key not in self._classes and len(self._classes) >= MAX_CLASSES:
            key = (key[0], OTHERS)
        each = self._classes.setdefault(key, BadClass(more.switch, more.found, more.remedy, is_mixed=key[1] == OTHERS))
        each.count += more.count
        each.largest = max(each.largest, more.largest)
        each.places += more.places[: MAX_PLACES - len(each.places)]

    def empty(self) -> "BadRows":
        """Returns an object without rows, for some rows of this data set; `merge` adds it here."""
        made = BadRows(self.setting, self._config)
        made._is_whole = False
        return made

    def merge(self, later: "BadRows") -> None:
        """Adds rows that follow those that were added until now: the result is as if each had been added here."""
        self.num_rows += later.num_rows
        for key, each in later._classes.items():
            self._add_class(key, each)
        for kind, count in later._num_skipped.items():
            self._num_skipped[kind] = self._num_skipped.get(kind, 0) + count
            self._first_skipped.setdefault(kind, later._first_skipped[kind])

    def skips(self, switch: str) -> bool:
        """Returns whether rows with a defect are left out, and not refused."""
        return self._config.decide(switch).name == OnBadRow.skip.name

    def num_skipped(self, kind: str) -> int:
        """Returns how many rows of a kind were left out."""
        return self._num_skipped.get(kind, 0)

    def refused(self) -> list[BadClass]:
        """Returns the classes of rows that are refused."""
        return list(self._classes.values())

    def require_most(self) -> None:
        """Refuses to skip most rows by `data.on_bad`, since then something else is wrong.

        Raises:
            UserError: It names the first row of the most frequent defect.
        """
        counts = {kind: count for kind, count in self._num_skipped.items() if kind != "on_overlap"}
        num_skipped = sum(counts.values())
        if self.skips("on_bad") and is_misread(num_skipped, self.num_rows):
            first = self._first_skipped[max(counts, key=lambda kind: counts[kind])]
            raise UserError(
                f"{self.setting}: data.on_bad=skip would leave out {num_skipped:,} of {self.num_rows:,} rows, such as "
                f"{first.removesuffix('.')}. {MISREAD}"
            )

    def first_skipped(self, kind: str) -> str:
        """Returns place and defect of the first row of a kind that was left out; empty if there is none."""
        return self._first_skipped.get(kind, "")


def require_usable(*splits: BadRows) -> None:
    """Tells of all refused rows of all splits in one error.

    Raises:
        UserError: A row is refused; or `data.on_bad=skip` would leave out most rows of a split.
    """
    found = sorted((each for split in splits for each in split.refused()), key=lambda each: -each.count)
    if not found:
        for split in splits:
            split.require_most()
        return
    num_bad, num_rows = sum(each.count for each in found), sum(split.num_rows for split in splits)
    if len(found) == 1:
        raise UserError(f"{found[0]}{'' if is_misread(num_bad, num_rows) else _skip_one(found[0])}")
    lines = "".join(f"\n  {each}" for each in found)
    remedy = MISREAD if is_misread(num_bad, num_rows) else _skip_all(found)
    raise UserError(
        f"data: {num_bad:,} of {num_rows:,} rows cannot be used, for {len(found)} reasons:{lines}\n  {remedy}"
    )


def is_misread(num_bad: int, num_rows: int) -> bool:
    """Returns whether so many rows are bad that `data.on_bad=skip` would refuse to leave them out."""
    return num_bad > MISREAD_SHARE * num_rows


def _skip_one(found: BadClass) -> str:
    return "" if found.switch != "on_bad" else " Or leave such rows out, counted: data.on_bad=skip"


def _skip_all(found: list[BadClass]) -> str:
    own = list(dict.fromkeys(f"data.{each.switch}=skip" for each in found if each.switch != "on_bad"))
    some = f" (or some of them: {' '.join(own)})" if own else ""
    return f"Correct them, or leave all of them out, counted, with data.on_bad=skip{some}."
