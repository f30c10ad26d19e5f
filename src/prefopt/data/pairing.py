"""Makes pairs of rows that are none: of several answers with scores, and of single answers with a label (KTO's)."""

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from prefopt.config.choices import PairChoice
from prefopt.config.schema import DataConfig
from prefopt.data.formats.format import PASSED_ON, SCORES, Row
from prefopt.data.formats.kto import WANTED
from prefopt.data.formats.ratings import RANKED
from prefopt.data.values import RowError

METADATA = "metadata"
"""Column of an object that may hold the scores of a pair; nothing else of it is read."""
HINTS = frozenset(("margin", METADATA, *(first for first, _ in SCORES)))
"""A row without these columns has no margin: asked first, since most rows have none."""

LINE = r"(?:row )?\d+"
RANKED_PLACE = re.compile(rf"(.+:{LINE}) pair \d+", re.DOTALL)
JOINED_PLACE = re.compile(rf"((.+):{LINE})\+(?:(.+):)?({LINE})", re.DOTALL)


@dataclass(frozen=True)
class PairRule:
    """Which pairs are made of a row, and which are left out (`data.pairs`, `data.min_margin`)."""

    choice: PairChoice | None = None
    min_margin: float | None = None

    @classmethod
    def of(cls, config: DataConfig) -> "PairRule":
        """Returns the rule of the settings."""
        return cls(config.pairs, config.min_margin)


class Pair(NamedTuple):
    """A pair as a row in TRL's format.

    Attributes:
        row: Prompt, chosen, rejected and what else TRL's rows have.
        place: Where it stands: two places with a `+` between them, if it is made of two rows.
        margin: How much better the chosen answer is, by the scores of the file; None if there are none.
        scored_by: The columns of the row that say it.
    """

    row: Row
    place: str
    margin: float | None
    scored_by: tuple[str, ...] = ()


class _Answer(NamedTuple):
    row: Row
    place: str


@dataclass
class Pairing:
    """Makes pairs; use one object for all rows of a data set.

    A row of two or more scored answers gives pairs by `rule`. A single answer with a label waits for one of the other
    label to the same prompt: in the order of the file, each answer is used once.
    """

    rule: PairRule = field(default_factory=PairRule)
    num_joined: int = 0
    """Pairs that were joined of two rows."""
    num_close: int = 0
    """Pairs whose margin is below `rule.min_margin`."""
    _waiting: dict[bytes, deque[_Answer]] = field(default_factory=dict)
    """Answers of one label, of each prompt."""

    @property
    def num_waiting(self) -> int:
        """Answers for which there is none of the other label."""
        return sum(map(len, self._waiting.values()))

    def make(self, row: Row, place: str, scored: Mapping[str, Any]) -> list[Pair]:
        """Returns the pairs that a row completes, often one.

        Args:
            row: A row in TRL's format, or with answers that are `RANKED` or `WANTED`.
            place: Where it stands.
            scored: The row as it stands there, with its scores.
        """
        if RANKED in row:
            return [*self._rank(row, place)]
        if WANTED in row:
            return [*self._join(row, place)]
        return [Pair(row, place, *find_margin(scored))]

    def admits(self, pair: Pair) -> bool:
        """Returns whether the margin of a pair is large enough, and counts it if not.

        Raises:
            RowError: A margin is asked for, and the pair has none.
        """
        least = self.rule.min_margin
        if least is None:
            return True
        if pair.margin is None:
            raise RowError(
                f"data.min_margin={least:g} needs the scores of both answers, and this row has none under a known "
                f"name, such as '{SCORES[0][0]}' and '{SCORES[0][1]}'. Leave data.min_margin out."
            )
        self.num_close += pair.margin < least
        return pair.margin >= least

    def _rank(self, row: Row, place: str) -> Iterator[Pair]:
        """Yields the pairs of a row with several answers, each with how good it is; none if all are equally good."""
        ranked: list[tuple[Any, float]] = row[RANKED]
        rest = {key: value for key, value in row.items() if key != RANKED}
        pairs = [
            Pair({**rest, "chosen": better, "rejected": worse}, place, high - low)
            for better, worse, high, low in self._choose(rest, ranked)
        ]
        for number, pair in enumerate(pairs, start=1):
            yield pair._replace(place=f"{place} pair {number}") if len(pairs) > 1 else pair

    def _choose(self, row: Row, ranked: list[tuple[Any, float]]) -> list[tuple[Any, Any, float, float]]:
        if self.rule.choice is PairChoice.all:
            return [(better, worse, high, low) for better, high in ranked for worse, low in ranked if high > low]
        best, high = max(ranked, key=lambda answer: answer[1])  # the first of several
        others = [answer for answer in ranked if answer[1] < high]
        if not others:
            return []
        worse, low = min(others, key=lambda answer: answer[1])
        if self.rule.choice is PairChoice.best_random:
            far = [answer for answer in others if high - answer[1] >= (self.rule.min_margin or 0)] or others
            equals = [answer for answer in ranked if answer[1] == high]
            # By content, so that neither the order of answers nor of rows changes it.
            (worse, low), (best, _) = (min(some, key=lambda each: _digest([row, each[0]])) for some in (far, equals))
        return [(best, worse, high, low)]

    def _join(self, row: Row, place: str) -> Iterator[Pair]:
        """Yields a pair if an answer of the other label waits."""
        key = _digest([row.get(name) for name in ("prompt", "system", *PASSED_ON)])
        waiting = self._waiting.setdefault(key, deque())
        if not waiting or waiting[0].row[WANTED] == row[WANTED]:
            waiting.append(_Answer(row, place))
            return
        sides = {answer.row[WANTED]: answer for answer in (waiting.popleft(), _Answer(row, place))}
        if not waiting:
            del self._waiting[key]
        self.num_joined += 1
        wanted, unwanted = sides[True], sides[False]
        rest = {key: value for key, value in row.items() if key not in (WANTED, "completion")}
        pair = {**rest, "chosen": wanted.row["completion"], "rejected": unwanted.row["completion"]}
        yield Pair(pair, _both(wanted.place, unwanted.place), None)


def find_margin(row: Mapping[str, Any]) -> tuple[float | None, tuple[str, ...]]:
    """Returns how much better the chosen answer of a row is, and the columns that say it; None and () if none do."""
    if row.keys().isdisjoint(HINTS):
        return None, ()
    if (margin := _number(row.get("margin"))) is not None:
        return margin, ("margin",)
    for names in SCORES:
        high, low = (_number(row.get(name)) for name in names)
        if high is not None and low is not None:
            return high - low, names
    inside = row.get(METADATA)
    found, _ = find_margin({**inside, METADATA: None}) if isinstance(inside, dict) else (None, ())
    return found, () if found is None else (METADATA,)


def _number(value: object) -> float | None:
    """Returns a number, also from a cell of a table; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()


def _both(first: str, second: str) -> str:
    """Returns the places of two rows as one: `pairs.jsonl:3+8`."""
    file, _, line = second.rpartition(":")
    return f"{first}+{line if first.rpartition(':')[0] == file else second}"


def rows_of(place: str) -> list[str]:
    """Returns the places of the rows that a pair was made of, most often its own."""
    if ranked := RANKED_PLACE.fullmatch(place):
        return [ranked[1]]
    if joined := JOINED_PLACE.fullmatch(place):
        first, file, other_file, line = joined.groups()
        return [first, f"{other_file or file}:{line}"]
    return [place]
