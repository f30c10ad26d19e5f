"""A request to stop early: from a signal, from the user's time limit, or from the scheduler's."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""SIGTERM and SIGUSR1: a scheduler or torchrun; SIGINT: Ctrl-C."""
SAFETY = 1.5
"""Factor on the longest step and save so far, since the next ones may take longer."""
TIME_LIMIT_MARGIN_S = 5.0
"""Least time to keep before run.time_limit, which only this process enforces."""
SCHEDULER_MARGIN_S = 30.0
"""Least time to keep before the scheduler kills the job: before the first save its duration is unknown."""

Phase = Literal["step", "save"]
Clock = Callable[[], float]


class Preempted(BaseException):
    """A run ended early on request, with its state saved: the same command continues it.

    Like KeyboardInterrupt, this is no subclass of `Exception`: `StopRequest.raise_at_once` may raise it inside any
    library, where `except Exception` would swallow it.

    Attributes:
        reason: What asked for it, such as "SIGTERM" or "time limit".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopRequest:
    """Tells whether this process has been asked to stop; build it with `install`.

    Each rank has its own, and they may differ for a while, so ranks agree on `requested` before they act on it.
    """

    def __init__(self, limits: list["_Limit"]) -> None:
        self._limits = limits
        self._longest: dict[Phase, float] = {"step": 0.0, "save": 0.0}
        self._limit: str | None = None
        self._signal: str | None = None  # apart from _limit: a signal may arrive while that is being set
        self._raises = False
        self._num_interrupts = 0
        self._has_launcher = "LOCAL_RANK" in os.environ

    @classmethod
    @contextmanager
    def install(
        cls,
        *,
        time_limit_s: float | None,
        scheduler_end: float | None,
        monotonic: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> Iterator["StopRequest"]:
        """Listens to signals and clocks until the block ends, then restores the earlier signal handlers.

        With a launcher the handlers stay: it sends SIGTERM to all ranks as soon as one has ended, and this must change
        neither how the others end nor what they print. Outside the main thread Python allows no signal handlers: only
        the clocks work there.

        Args:
            time_limit_s: Seconds from now; None for no limit.
            scheduler_end: Unix time at which the scheduler kills the job; None if none does. A time in the past is
                ignored with a warning: an extended job keeps its first end in the environment.
            monotonic: The clock for `time_limit_s`.
            wall: The clock for `scheduler_end`.
        """
        limits = []
        if time_limit_s is not None:
            limits.append(_Limit("time limit", monotonic() + time_limit_s, TIME_LIMIT_MARGIN_S, monotonic))
        if scheduler_end is not None and scheduler_end <= wall():
            logger.warning("preemption: the scheduler's end of this job has passed; ignored")
        elif scheduler_end is not None:
            limits.append(_Limit("end of the scheduler's job", scheduler_end, SCHEDULER_MARGIN_S, wall))
        request = cls(limits)
        earlier = request._listen()
        try:
            yield request
        finally:
            for number, handler in earlier.items() if not request._has_launcher else ():
                signal.signal(number, handler)

    @property
    def requested(self) -> str | None:
        """Why this process should stop after the current step; None if it should not. Never goes back to None."""
        if self._signal is None and self._limit is None:
            self._limit = self._find_limit()
        return self._limit or self._signal

    def note_duration(self, phase: Phase, seconds: float) -> None:
        """Remembers the longest duration of each phase, from which the time needed to stop is estimated."""
        self._longest[phase] = max(self._longest[phase], seconds)

    @contextmanager
    def raise_at_once(self) -> Iterator[None]:
        """Makes the first signal in the block raise at once; for work in which ranks need not agree. Main thread only.

        Raises:
            Preempted: A stop was requested before the block or, by a signal, in it. Clocks are checked only before it.
        """
        self._raises = True  # before the check, so that no signal is lost in between
        try:
            if self.requested is not None:
                raise Preempted(self.requested)
            yield
        finally:
            self._raises = False

    def _find_limit(self) -> str | None:
        cost_s = sum(self._longest.values())
        return next((limit.name for limit in self._limits if limit.remaining_s() < limit.margin_s(cost_s)), None)

    def _listen(self) -> dict[signal.Signals, Any]:
        """Sets the handlers; returns the earlier ones."""
        earlier: dict[signal.Signals, Any] = {}
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGINT and before is signal.SIG_IGN:
                continue  # a background job of a shell: Ctrl-C is not for it
            try:
                signal.signal(number, self._on_signal)
            except ValueError as error:
                logger.debug("preemption: signals are not heard: %s", error)
                break
            earlier[number] = signal.SIG_DFL if before is None else before  # None: set outside Python, unknown
        return earlier

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only records the request: printing or logging can fail in a handler that has interrupted the same call."""
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1 and not self._has_launcher:
                raise KeyboardInterrupt
        if self._signal is None:
            self._signal = signal.Signals(number).name
            if self._raises:
                raise Preempted(self._signal)


class _Limit:
    """A time before which the state of the run must be saved."""

    def __init__(self, name: str, end: float, least_margin_s: float, clock: Clock) -> None:
        self.name = name
        self._end = end
        self._least_margin_s = least_margin_s
        self._clock = clock

    def remaining_s(self) -> float:
        return self._end - self._clock()

    def margin_s(self, cost_s: float) -> float:
        return max(self._least_margin_s, SAFETY * cost_s)


def scheduler_end() -> float | None:
    """Unix time at which SLURM ends this job (SLURM_JOB_END_TIME); None if the environment does not say."""
    try:
        end = float(os.environ.get("SLURM_JOB_END_TIME", ""))
    except ValueError:
        return None
    return end if math.isfinite(end) and end > 0 else None
