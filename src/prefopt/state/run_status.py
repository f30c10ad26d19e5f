"""What is known of a run's state."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from prefopt.runs.find import Kind, Place


class Word(Enum):
    """What a run is said to be, the most urgent first."""

    failed = "failed"
    stopped = "stopped"
    """Ended badly, and its job has decided against another attempt."""
    diverged = "diverged"
    killed = "killed"
    """It says that it is running, but its process is gone and no job of it waits."""
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
        word: Its state.
        why: What there is to say of it, in one line.
        step: The last step that is known of.
        total: Optimizer steps of the whole run; None where the run's files do not tell.
        loss: Of the last training line.
        time_s: Training time so far over all attempts, seconds.
        eta_s: Seconds until the last step; None if it does not run or nothing tells.
        attempts: How often it was begun.
        log: What its last attempt has printed; None if there is no such file.
        queue: Slurm's word for its newest job, None if Slurm does not know the job.
        is_live: A process works on it, or a job of it runs or waits.
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
        """Whether it does not go on by itself, and should."""
        return self.word in NEEDS_PERSON and not (self.word is Word.diverged and self.place.kind is Kind.trial)
