"""How long each part of a command takes: every moment counts for exactly one named part.

    with phases.of("model_load"):
        ...

Parts nest, and time counts for the innermost one only, so the parts of a command sum to its duration; time outside of
all parts is `other`. Queued work of a device counts for the part in which the host waits for it. There is one clock
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
"""The parts that consist of training steps."""
DIGITS = 3
SHOWN, LEAST_SHARE = 6, 0.01
"""Most parts that the line in the terminal names, and the least share of the total for which a part is named."""


class Keeper(Protocol):
    """Stores the time of a run from one attempt to the next; a run's folder implements it.

    Attributes:
        work: Path of the file, for messages.
    """

    @property
    def work(self) -> Path: ...

    def read_work(self) -> dict[str, Any]:
        """The stored values; an empty dict at first."""

    def add_work(self, **parts: object) -> None:
        """Stores further values."""


class Clock:
    """Seconds per part, of this attempt and the earlier ones.

    Args:
        begun: Start by `time.monotonic()`; the time since then counts for the part `imports`.
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
        """The innermost open group, such as `evaluation`; None outside of groups."""
        return next((part.split("/")[0] for part in reversed(self._open) if "/" in part), None)

    def keep(self, run: "Keeper") -> None:
        self.run, self._saved = run, run.read_work()

    def count_checkpoint(self, num_bytes: int) -> None:
        self._checkpoints["num"] += 1
        self._checkpoints["bytes"] += num_bytes

    def seconds(self) -> dict[str, float]:
        """Seconds per part over all attempts, in the order in which the parts first appeared."""
        self._settle()
        earlier = self._saved.get("phases", {})
        return {part: earlier.get(part, 0.0) + self._seconds.get(part, 0.0) for part in {**earlier, **self._seconds}}

    def trained(self) -> float:
        """Seconds of this attempt that were spent on training steps."""
        self._settle()
        return sum(self._seconds.get(part, 0.0) for part in TRAINING)

    def checkpoints(self) -> dict[str, float | None]:
        """Number and bytes of the checkpoints of all attempts, and the speed of writing them in GB/s."""
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
    """Makes the clock of the next `begin` count from the start of this process, so that imports are included."""
    global _process_begun, _owns_process
    _process_begun, _owns_process = time.monotonic() - _age_s(), True


def owns_process() -> bool:
    """True if this process runs one command and nothing else."""
    return _owns_process


def begin() -> None:
    """Starts the clock of a command; earlier time counts only after `count_from_process_start`."""
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
    """Puts all parts of the block into a group, such as `evaluation/model_load`; the rest is `<group>/other`."""
    clock = _clock
    clock.enter(f"{name}/{OTHER}")
    try:
        yield
    finally:
        clock.leave()


def turn_into(part: str) -> None:
    """Ends the innermost part here; the rest of its block counts for `part`."""
    _clock.turn_into(part)


def count_checkpoint(num_bytes: int) -> None:
    """Counts a checkpoint of `num_bytes` bytes that was written."""
    _clock.count_checkpoint(num_bytes)


def keep(run: "Keeper") -> None:
    """Adds the time of a run's earlier attempts, and makes `save` write to its folder. Rank 0 only."""
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
    """Seconds per part so far, over all attempts of the run."""
    return _clock.seconds()


def trained() -> float:
    """Seconds of this attempt that were spent on training steps, without evaluations and checkpoints."""
    return _clock.trained()


def describe(seconds: Mapping[str, float]) -> str:
    """One line with the total and the largest parts, in seconds."""
    total = sum(seconds.values())
    totals = by_group(seconds)
    named = sorted((p for p in totals if p != OTHER), key=lambda part: -totals[part])[:SHOWN]
    named = [part for part in named if totals[part] >= LEAST_SHARE * total]
    shown = [f"{label(part)} {totals[part]:.1f}" for part in named]
    rest = total - sum(totals[part] for part in named)
    return f"time: {total:.1f} s: " + " \u00b7 ".join([*shown, f"{OTHER} {rest:.1f}"])


def by_group(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds per group: the parts of a group are summed, and `first_step` counts as `training`."""
    totals: dict[str, float] = {}
    for part, value in seconds.items():
        name = TRAINING[-1] if part in TRAINING else part.split("/")[0]
        totals[name] = totals.get(name, 0.0) + value
    return totals


def outside_training(seconds: Mapping[str, float]) -> float:
    """Seconds that were not spent on training steps."""
    return sum(value for part, value in seconds.items() if part not in TRAINING)


def label(part: str) -> str:
    """A part's name as it is shown, such as `evaluation: model load`."""
    return part.replace("_", " ").replace("/", ": ")


def _age_s() -> float:
    """Seconds since this process began; if the system does not say, the CPU seconds that it has used."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()
    return age if age >= 0 else time.process_time()
