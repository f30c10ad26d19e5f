"""The state of a run as `prefopt status` shows it."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from prefopt.runs.find import Kind, Place


class Word(Enum):
    """The states of a run, the most urgent first."""

    failed = "failed"
    stopped = "stopped"
    """It failed, and its job has decided against another attempt."""
    diverged = "diverged"
    killed = "killed"
    """Its status.json says running, but its process is gone and no job of it waits."""
    damaged = "damaged"
    """status.json cannot be understood."""
    running = "running"
    preempted = "preempted"
    queued = "queued"
    not_begun = "not begun"
    pruned = "pruned"
    done = "done"


OVER = frozenset({Word.pruned, Word.done})
NEEDS_PERSON = frozenset({Word.failed, Word.stopped, Word.diverged, Word.killed, Word.damaged})


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of one run.

    Attributes:
        place: The run.
        word: State of the run.
        why: Reason or details, in one line.
        step: The last known step.
        total: Optimizer steps of the whole run; None if the run's files do not have it.
        loss: Loss of the last training line.
        time_s: Training time so far over all attempts, seconds.
        eta_s: Seconds until the last step; None if it does not run or cannot be estimated.
        attempts: Number of attempts so far.
        log: File with the output of its last attempt; None if there is none.
        queue: Slurm's state of its newest job; None if Slurm does not know the job.
        is_live: Whether a process works on it, or a job of it runs or waits.
    """

    place: Place
    word: Word
    why: str = ""
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    time_s: float | None = None
    eta_s: float | None = None
    attempts: int = 0
    log: Path | None = None
    queue: str | None = None
    is_live: bool = False

    @property
    def needs_person(self) -> bool:
        """Whether a user must act: it should go on, but will not by itself."""
        return self.word in NEEDS_PERSON and not (self.word is Word.diverged and self.place.kind is Kind.trial)
