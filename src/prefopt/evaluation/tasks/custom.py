"""A check of the user's own: a function of prompt, answer and chosen answer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.config.ranges import require
from prefopt.config.tasks import SETTING, CustomTaskConfig
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.process.errors import UserError, first_line, shorten
from prefopt.process.named_code import find_code

WANTED = "It must return true or false, a finite number, or None where it cannot tell"


@dataclass(frozen=True)
class CustomTask:
    """Calls a function for each answer.

    Attributes:
        name: By which reports tell it apart.
        function: From prompt, answer and chosen answer (None if there is none) to a truth or a number.
        setting: What names the function, for errors.
        higher_is_better: Which numbers are better.
    """

    name: str
    function: Callable[[str, str, str | None], Any]
    setting: str
    higher_is_better: bool = True

    @classmethod
    def load(cls, config: CustomTaskConfig) -> "CustomTask":
        """Imports the function.

        Raises:
            UserError: The name leads nowhere, or to no function.
        """
        key = f"{SETTING}: {config.name}: function"
        function, setting = find_code(key, config.function), f"{key}={config.function}"
        require(callable(function), f"{setting}: must be a function, found {type(function).__name__}.")
        return cls(config.name, function, setting, config.higher_is_better)

    def check(self, answers: Sequence[Answered]) -> Checked:
        """Checks the answers of one contestant.

        Raises:
            UserError: The function fails, or returns something else than a truth or a number; names the answer.
        """
        found = [self._call(number, answered) for number, answered in enumerate(answers)]
        are_truths = all(isinstance(value, bool) for value in found)
        values = np.array(
            [math.nan if value is None else value for value in found], dtype=bool if are_truths else float
        )
        without = sum(value is None for value in found)
        return Checked({self.name: values}, {self.name: self.higher_is_better}, {"num_without_value": without})

    def _call(self, number: int, answered: Answered) -> bool | float | None:
        try:
            value = self.function(answered.prompt, answered.answer, answered.chosen)
        except Exception as error:
            raise UserError(
                f"{self.setting}: failed on answer {number} (from 0), to the prompt {_quote(answered.prompt)}: "
                f"{type(error).__name__}: {shorten(first_line(error))}{_place(error)}. {WANTED}; mend it there."
            ) from error
        if value is None:
            return None
        if isinstance(value, bool | np.bool_):
            return bool(value)
        if isinstance(value, int | float | np.number) and _is_finite(value):
            return float(value)
        raise UserError(
            f"{self.setting}: returned {shorten(repr(value))} for answer {number} (from 0), to the prompt "
            f"{_quote(answered.prompt)}. {WANTED}."
        )


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (OverflowError, TypeError):  # a whole number beyond floats; a complex one
        return False


def _quote(prompt: str) -> str:
    return shorten(ascii(prompt))


def _place(error: Exception) -> str:
    """Returns the line of the user's code in which an error arose: ` (line 3 of checks.py)`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"
