"""A check of the user's own: a function of prompt, answer and chosen answer."""

import inspect
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
            UserError: The name leads nowhere, to no function, or to one that cannot be called with three values.
        """
        key = f"{SETTING}: {config.name}: function"
        function, setting = find_code(key, config.function), f"{key}={config.function}"
        require(callable(function), f"{setting}: must be a function, found {type(function).__name__}.")
        _require_three(setting, function)
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
            told = f"{type(error).__name__}: {shorten(first_line(error))}{_place(error, self.function)}"
            raise UserError(
                f"{self.setting}: failed on answer {number} (from 0), to the prompt {_quote(answered.prompt)}: "
                f"{told}. {WANTED}; mend it there."
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


def _require_three(setting: str, function: Callable[..., Any]) -> None:
    """Refuses a function that does not take prompt, answer and chosen answer, as far as Python tells what it takes.

    Raises:
        UserError: It names the function's line.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return
    try:
        signature.bind("", "", None)
    except TypeError as error:
        raise UserError(
            f"{setting}: takes {signature}, and it is called with three values: prompt, answer, and chosen answer "
            f"or None ({error}){_place_of(function)}. Write it as def name(prompt, answer, chosen)."
        ) from error


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (OverflowError, TypeError):  # a whole number beyond floats; a complex one
        return False


def _quote(prompt: str) -> str:
    return shorten(ascii(prompt))


def _place(error: Exception, function: Callable[..., Any]) -> str:
    """Returns the line of the user's code in which an error arose: ` (line 3 of checks.py)`."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:  # the call itself failed
        return _place_of(function)
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"


def _place_of(function: Callable[..., Any]) -> str:
    """Returns where a function begins; empty if it is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else f" (line {code.co_firstlineno} of {code.co_filename})"
