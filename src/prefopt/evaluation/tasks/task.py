"""What every task does: it checks a contestant's answers, one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.process.errors import shorten


@dataclass(frozen=True, slots=True)
class Answered:
    """A contestant's answer to a held-out prompt, as text, beside the answer that the data prefer.

    Attributes:
        prompt: The prompt.
        answer: What the contestant wrote.
        chosen: The answer in the data; None if there is none.
    """

    prompt: str
    answer: str
    chosen: str | None


@dataclass(frozen=True)
class Checked:
    """What a task found in a contestant's answers.

    Attributes:
        values: Key of a number -> its value for each answer, shape (answers,): truths, of which the share is reported,
            or numbers, of which the mean is; NaN where an answer has none. The first one is the task's main number.
        higher_is_better: Key of a number -> which end is better. Numbers that are not in it describe, such as the
            length of sentences: no end is better. The main number is in it.
        details: What else a report shows: a confusion table, the commonest errors; JSON without NaN.
        num_without_reference: Answers whose main number is NaN because the data have nothing to compare them with. It
            is the same for all contestants, so nothing that they write is left out by it.
    """

    values: Mapping[str, NDArray[np.bool_] | NDArray[np.float64]]
    higher_is_better: Mapping[str, bool]
    details: Mapping[str, Any] = field(default_factory=dict)
    num_without_reference: int = 0


class Task(Protocol):
    """A check of answers."""

    @property
    def name(self) -> str:
        """By which reports tell it apart."""
        ...

    def check(self, answers: Sequence[Answered]) -> Checked:
        """Checks the answers of one contestant."""
        ...


@dataclass(frozen=True)
class TaskContext:
    """What tasks are built from.

    Attributes:
        trained: The training data as text: labels and styles are learned from it. Demonstrations are pairs whose
            rejected answer is empty.
        seed: Seed of what is drawn.
    """

    trained: Sequence[LabelledPair]
    seed: int


def quotable(text: str) -> str:
    """Returns a part of an answer as a report can quote it: of bounded length, and text that a file can hold."""
    return shorten(text).encode("utf-8", "replace").decode().replace("\0", "?")
