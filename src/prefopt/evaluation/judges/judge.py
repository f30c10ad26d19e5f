"""What every judge does: it reads two answers to one prompt, and says which is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prefopt.config.schema import TrainConfig
from prefopt.evaluation.statistics import Floats

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Matchup:
    """Two answers to one prompt, in the order in which a judge sees them; all are text."""

    prompt: str
    first: str
    second: str

    @property
    def swapped(self) -> "Matchup":
        """The same in the other order."""
        return Matchup(self.prompt, self.second, self.first)


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A pair of the data as text: what people, or whoever made the data, said is better."""

    prompt: str
    chosen: str
    rejected: str


class Judge(Protocol):
    """A reader of answers.

    Attributes:
        name: By which reports tell it apart.
        sees_order: Whether its verdict may depend on which answer comes first. It is then asked in both orders, and
            where the two verdicts differ, it is a tie.
    """

    name: str
    sees_order: bool

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup: 1 the first answer is better, -1 the second, 0 tie, NaN no verdict."""
        ...

    def describe(self) -> "Mapping[str, Any]":
        """Returns what a report says of it beside its verdicts: its kind, what it learned from, how well it did."""
        ...


@dataclass(frozen=True)
class JudgeContext:
    """What judges are built from.

    Attributes:
        trained: The pairs of the training data as text, of which a classifier learns.
        config: The settings of the run.
        cache: Folder for verdicts that cost money or time.
    """

    trained: Sequence[LabelledPair]
    config: TrainConfig
    cache: Path


def compare_scores(first: Floats, second: Floats, tie_within: float) -> Floats:
    """Returns the verdicts that two scores per matchup give: the higher one is better, near ones tie, NaN is none."""
    gap = first - second
    verdicts = np.where(np.abs(gap) <= tie_within, 0.0, np.sign(gap))
    return np.where(np.isnan(gap), np.nan, verdicts)
