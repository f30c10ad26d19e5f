"""A judge that scores an answer by regular expressions, or by code of the user's own."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.config.judges import SETTING, RuleJudgeConfig
from prefopt.evaluation.judges.judge import Matchup, compare_scores
from prefopt.evaluation.statistics import Floats
from prefopt.process.errors import UserError, first_line, shorten
from prefopt.process.named_code import find_code
from prefopt.process.time_limit import time_limit
from prefopt.storage.files import hash_file

SEARCH_LIMIT_S = 10.0
"""Time limit in seconds of finding one pattern in one answer. Without it, `(a+)+b` on 40 letters runs for years."""


class RuleJudge:
    """The answer with more points is better. Each answer is scored once, whatever it is compared with.

    Args:
        config: Its patterns or its function.

    Raises:
        UserError: The function cannot be imported, or is none.
    """

    sees_order = False

    def __init__(self, config: RuleJudgeConfig) -> None:
        self.name = config.name
        self._config = config
        self._where = f"{SETTING}: {config.name}:"
        flags = re.IGNORECASE if config.ignore_case else 0
        self._patterns = [(re.compile(pattern, flags), points) for pattern, points in config.weights.items()]
        self._function = self._find_function()
        self._scores: dict[tuple[str, str], float] = {}

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup.

        Raises:
            UserError: A pattern takes longer than `SEARCH_LIMIT_S`, or the function fails or returns no finite number.
        """
        first = np.array([self._score(each.prompt, each.first) for each in matchups], float)
        second = np.array([self._score(each.prompt, each.second) for each in matchups], float)
        return compare_scores(first, second, self._config.tie_within)

    def describe(self) -> Mapping[str, Any]:
        """Returns the patterns with their points, or the function with the digest of its file."""
        facts: dict[str, Any] = {"kind": "rule", "tie_within": self._config.tie_within}
        if self._function is None:
            return {**facts, "patterns": dict(self._config.weights), "ignore_case": self._config.ignore_case}
        return {**facts, "function": self._config.function, "sha256": _hash_source(self._function)}

    def _find_function(self) -> Callable[[str, str], Any] | None:
        name = self._config.function
        if name is None:
            return None
        found = find_code(f"{self._where} function", name)
        if not callable(found):
            raise UserError(f"{self._where} function={name}: must be a function, found {type(found).__name__}.")
        return found  # type: ignore[no-any-return]

    def _score(self, prompt: str, answer: str) -> float:
        if (prompt, answer) not in self._scores:
            count = self._count_points(answer) if self._function is None else self._ask_function(prompt, answer)
            self._scores[prompt, answer] = count
        return self._scores[prompt, answer]

    def _count_points(self, answer: str) -> float:
        points = 0.0
        for pattern, worth in self._patterns:
            try:
                with time_limit(SEARCH_LIMIT_S):
                    points += worth * sum(1 for _ in pattern.finditer(answer))
            except TimeoutError as error:
                raise UserError(
                    f"{self._where} pattern {shorten(repr(pattern.pattern))}: {error} to find it in an answer of "
                    f"{len(answer):,} letters, which begins {shorten(repr(answer))}. A repetition in a repetition, "
                    "such as (a+)+, tries every way to divide the letters. Write it with one, such as a+."
                ) from error
        return points

    def _ask_function(self, prompt: str, answer: str) -> float:
        assert self._function is not None
        where = f"{self._where} function={self._config.function}:"
        of = f"for the answer {shorten(repr(answer))}"
        try:
            found = self._function(prompt, answer)
        except Exception as error:
            raise UserError(
                f"{where} failed {of} ({type(error).__name__}: {first_line(error)}). It gets the prompt and the "
                "answer, two texts, and must return a number for each of them, also for an empty one."
            ) from error
        is_number = isinstance(found, Real | np.bool_) and math.isfinite(found)
        if not is_number:
            raise UserError(
                f"{where} must return a finite number, found {shorten(repr(found))} ({type(found).__name__}) {of}."
            )
        return float(found)


def _hash_source(function: Callable[..., Any]) -> str | None:
    """Returns the SHA-256 (hex) of the file that defines a function; None for one that has none, as of C code."""
    try:
        source = inspect.getsourcefile(function)
        return hash_file(Path(source)) if source else None
    except (TypeError, OSError):
        return None
