"""Where the seconds of a command go: every moment of it belongs to one named part.

    with phases.of("model_load"):
        ...

Parts nest, and time counts for the innermost one alone, so that the parts of a command sum up to its duration; what
no part claims is `other`. Work that a device still has queued counts where the host waits for it. There is one clock
per process, for its main thread.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main

logger = logging.getLogger(__name__)

OTHER, IMPORTS, CHECKPOINTS = "other", "imports", "checkpoints"
TRAINING = ("first_step", "training")
"""The parts in which weights move."""
DIGITS = 3
SHOWN, LEAST_SHARE = 6, 0.01
"""Parts of the line in the terminal, at most, and the share of the whole from which on one is named."""


class Keeper(Protocol):
    """What keeps the time of a run from one attempt to the next: a run's folder.

    Attributes:
        work: The file, for messages.
    """

    @property
    def work(self) -> Path: ...

    def read_work(self) -> dict[str, Any]:
        """What was kept, an empty dict at the beginning."""

    def add_work(self, **parts: Any) -> None:
        """Keeps further parts."""


class Clock:
    """Seconds by part, since the clock began and before.

    Args:
        begun: By `time.monotonic()`; the time since then is the first part's.
    """

    def __init__(self, begun: float) -> None:
        self._last = begun
        self._open = [IMPORTS]
        self._seconds: dict[str, float] = {}
        self._saved: dict[str, Any] = {}
        self._checkpoints = {"num": 0, "bytes": 0}
        self.run: Keeper | None = None

    def enter(self, part: str) -> None:
        self._settle()
        self._open.append(part)

    def leave(self) -> None:
        self._settle()
        self._open.pop()

    def turn_into(self, part: str) -> None:
        self._settle()
        self._open[-1] = part

    def group(self) -> str | None:
        """The group whose parts are told apart, None outside of one."""
        return next((part.split("/")[0] for part in reversed(self._open) if "/" in part), None)

    def keep(self, run: "Keeper") -> None:
        self.run, self._saved = run, run.read_work()

    def count_checkpoint(self, num_bytes: int) -> None:
        self._checkpoints["num"] += 1
        self._checkpoints["bytes"] += num_bytes

    def seconds(self) -> dict[str, float]:
        """Seconds by part over all attempts, in the order in which the parts were first seen."""
        self._settle()
        earlier = self._saved.get("phases", {})
        return {part: earlier.get(part, 0.0) + self._seconds.get(part, 0.0) for part in {**earlier, **self._seconds}}

    def trained(self) -> float:
        """Seconds of this attempt in which weights moved."""
        self._settle()
        return sum(self._seconds.get(part, 0.0) for part in TRAINING)

    def checkpoints(self) -> dict[str, Any]:
        """Number and bytes of the checkpoints of all attempts, and at which speed they were written."""
        earlier = self._saved.get(CHECKPOINTS, {})
        counts: dict[str, Any] = {name: earlier.get(name, 0) + new for name, new in self._checkpoints.items()}
        seconds = self.seconds().get(CHECKPOINTS, 0.0)
        return {**counts, "gb_per_s": counts["bytes"] / 1e9 / seconds if counts["bytes"] and seconds else None}

    def _settle(self) -> None:
        now = time.monotonic()
        part = self._open[-1]
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now


_clock = Clock(time.monotonic())
_process_begun: float | None = None
_owns_process = False


def count_from_process_start() -> None:
    """Lets the clock of the next `begin` count from the start of this process, so that imports are in it."""
    global _process_begun, _owns_process
    _process_begun, _owns_process = time.monotonic() - _age_s(), True


def owns_process() -> bool:
    """True if this process runs one command and nothing else."""
    return _owns_process


def begin() -> None:
    """Begins the clock of a command; what came before in this process is another one's."""
    global _clock, _process_begun
    _clock, _process_begun = Clock(time.monotonic() if _process_begun is None else _process_begun), None
    _clock.turn_into(OTHER)


@contextmanager
def of(part: str) -> Iterator[None]:
    """Counts the time of the block for `part`, also as a decorator; within a group, for `group/part`."""
    clock = _clock
    group = clock.group()
    clock.enter(f"{group}/{part}" if group else part)
    try:
        yield
    finally:
        clock.leave()


@contextmanager
def group(name: str) -> Iterator[None]:
    """Lets all parts of the block be those of a group, such as `evaluation/model_load`; the rest is its `other`."""
    clock = _clock
    clock.enter(f"{name}/{OTHER}")
    try:
        yield
    finally:
        clock.leave()


def turn_into(part: str) -> None:
    """Lets the innermost part end here, and another one go on to the end of its block."""
    _clock.turn_into(part)


def count_checkpoint(num_bytes: int) -> None:
    """Notes that a checkpoint of so many bytes was written."""
    _clock.count_checkpoint(num_bytes)


def keep(run: "Keeper") -> None:
    """Adds the time of a run's earlier attempts, and lets `save` write to its folder. Rank 0 only."""
    _clock.keep(run)


def save() -> None:
    """Writes the time so far to the run's work.json; without `keep`, and on ranks other than 0, it does nothing."""
    if _clock.run is not None and is_main():
        rounded = {part: round(seconds, DIGITS) for part, seconds in _clock.seconds().items()}
        rounded = {part: seconds for part, seconds in rounded.items() if seconds}
        try:
            _clock.run.add_work(phases=rounded, checkpoints=_clock.checkpoints())
        except (OSError, UserError) as error:
            logger.warning("%s: the time of its parts cannot be written (%s)", _clock.run.work, error)


def seconds() -> dict[str, float]:
    """Seconds by part so far, over all attempts of the run."""
    return _clock.seconds()


def trained() -> float:
    """Seconds so far in which weights moved: neither evaluations nor checkpoints, and no earlier attempt."""
    return _clock.trained()


def describe(seconds: Mapping[str, float]) -> str:
    """One line: the whole, and its largest parts in seconds."""
    total = sum(seconds.values())
    totals = by_group(seconds)
    named = sorted((p for p in totals if p != OTHER), key=lambda part: -totals[part])[:SHOWN]
    named = [part for part in named if totals[part] >= LEAST_SHARE * total]
    shown = [f"{label(part)} {totals[part]:.1f}" for part in named]
    rest = total - sum(totals[part] for part in named)
    return f"time: {total:.1f} s: " + " \u00b7 ".join([*shown, f"{OTHER} {rest:.1f}"])


def by_group(seconds: Mapping[str, float]) -> dict[str, float]:
    """The parts of a group in one sum, and the first step with the others."""
    totals: dict[str, float] = {}
    for part, value in seconds.items():
        name = TRAINING[-1] if part in TRAINING else part.split("/")[0]
        totals[name] = totals.get(name, 0.0) + value
    return totals


def outside_training(seconds: Mapping[str, float]) -> float:
    """Seconds that were not spent on optimizer steps."""
    return sum(value for part, value in seconds.items() if part not in TRAINING)


def label(part: str) -> str:
    """A part's name for people: `evaluation: model load`."""
    return part.replace("_", " ").replace("/", ": ")


def _age_s() -> float:
    """Seconds since this process began; where the system does not tell, the processor's seconds that it has used."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()
    return age if age >= 0 else time.process_time()
