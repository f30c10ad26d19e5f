"""How far a long piece of work is: a line in the log now and then, with the time that is left."""

import logging
import time
from collections.abc import Callable

EVERY_S = 15.0
"""Seconds between two lines; work that takes less says nothing."""


class Pace:
    """Counts what is done of a piece of work, and says so from time to time.

    Args:
        what: What is done, such as `evaluation: tuned: answers`.
        total: How many there are.
        logger: Where the lines go.
        clock: Returns seconds.
    """

    def __init__(
        self, what: str, total: int, logger: logging.Logger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total, self._logger, self._clock = what, total, logger, clock
        self._done = 0
        self._began = self._told = clock()

    def advance(self, num: int) -> None:
        """Counts `num` more as done."""
        self.reach(self._done + num, self._total)

    def reach(self, done: int, total: int) -> None:
        """Notes that `done` of `total` are done."""
        self._done, self._total, now = done, total, self._clock()
        if now - self._told < EVERY_S or not 0 < done < total:
            return
        self._told = now
        minutes, seconds = divmod(round((now - self._began) / done * (total - done)), 60)
        self._logger.info("%s: %d/%d, about %d:%02d left", self._what, done, total, minutes, seconds)
