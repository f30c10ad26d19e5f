"""What the files of a run say, whatever state it is in: never stopped by what others are writing or have damaged."""

from dataclasses import dataclass
from pathlib import Path

from prefopt.runs.directory import State
from prefopt.runs.files import is_count, is_text, read_json
from prefopt.runs.find import Kind, Place
from prefopt.runs.jobs import LOG, Attempt, read_last_attempt
from prefopt.storage.lock_file import Sighting, read_lock

OVER = (State.done, State.pruned)
"""Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What lies in a run's folder, and beside it.

    Attributes:
        state: Of status.json; None without one.
        step: The last saved step.
        attempts: How often it was begun.
        message: Why it ended early.
        num_records: Lines that metrics.jsonl had at the last saved step; None where that was not counted.
        problem: Why status.json cannot be understood; empty as it should be.
        decision: What its job decided after the last attempt that it saw the end of.
        lock: Its lock; None if there is none, or if it is over.
        has_result: The final model is there, or none is due.
        log: What its last attempt printed.
    """

    state: State | None = None
    step: int = 0
    attempts: int = 0
    message: str = ""
    num_records: int | None = None
    problem: str = ""
    decision: Attempt | None = None
    lock: Sighting | None = None
    has_result: bool = True
    log: Path | None = None


def read_facts(place: Place) -> Facts:
    """Reads a run in the time that a thousand runs leave for one."""
    run = place.run
    status, problem = read_json(run.status)
    if status is not None and status.get("state") not in [known.value for known in State]:
        problem = problem or f"{run.status.name} has no state that this version knows ({status.get('state')!r})"
    if problem:
        return Facts(problem=problem, log=find_log(place))
    state = State(status["state"]) if status else None
    status = status or {}
    step, attempts = (status[key] if is_count(status.get(key)) else 0 for key in ("step", "attempts"))
    message = status["message"] if is_text(status.get("message")) else ""
    num_records = status["records"] if is_count(status.get("records")) else None
    if state in OVER:
        has_result = state is State.pruned or place.kind is Kind.reference or run.model.is_dir()
        return Facts(state, step, attempts, message, num_records, has_result=has_result)
    return Facts(
        state,
        step,
        attempts,
        message,
        num_records,
        decision=read_last_attempt(run),
        lock=read_lock(run.path),
        log=find_log(place),
    )


def find_log(place: Place) -> Path | None:
    """The log that was written to last: of the run's newest job, or of a run on this machine."""
    logs = [place.run.slurm / LOG, *([place.job.log] if place.job is not None else [])]
    found: list[tuple[float, Path]] = []
    for log in logs:
        try:
            found.append((log.stat().st_mtime, log))
        except OSError:
            continue
    return max(found)[1] if found else None
