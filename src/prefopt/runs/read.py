"""Reads the facts of a run in any state; files that are damaged or being written never cause an error."""

from dataclasses import dataclass
from pathlib import Path

from prefopt.runs.directory import State
from prefopt.runs.files import is_count, is_text, read_json
from prefopt.runs.find import Kind, Place
from prefopt.runs.jobs import LOG, Attempt, read_last_attempt
from prefopt.storage.lock_file import Sighting, read_lock

OVER = (State.done, State.pruned)
"""States in which nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts from the files in a run's folder and beside it.

    Attributes:
        state: State in status.json; None without that file.
        step: The last saved step.
        attempts: Number of attempts so far.
        message: Why the run ended early.
        num_records: Lines that metrics.jsonl had at the last saved step; None if they were not counted.
        problem: Why status.json cannot be understood; empty if it can.
        decision: The last ended attempt that its job recorded, with the job's decision; None without one.
        lock: The run's lock; None if there is none, or if the run is over.
        kind: What the run is for.
        has_result: Whether the final model exists, or the pairs of a stage that samples, or the run needs neither.
        log: File with the output of the last attempt; None without one.
    """

    state: State | None = None
    step: int = 0
    attempts: int = 0
    message: str = ""
    num_records: int | None = None
    problem: str = ""
    decision: Attempt | None = None
    lock: Sighting | None = None
    kind: Kind = Kind.run
    has_result: bool = True
    log: Path | None = None


def read_facts(place: Place) -> Facts:
    """Reads the facts of a run; must be fast, since a command may read a thousand runs."""
    if place.problem:
        return Facts(problem=place.problem)
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
        has_result = state is State.pruned or place.kind is Kind.reference or _has_result(place)
        return Facts(state, step, attempts, message, num_records, kind=place.kind, has_result=has_result)
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


def _has_result(place: Place) -> bool:
    return place.run.pairs.is_file() if place.kind is Kind.sample else place.run.model.is_dir()


def find_log(place: Place) -> Path | None:
    """Returns the log that was written to last: that of the newest job, or of a run on this machine."""
    logs = [place.run.slurm / LOG, *([place.job.log] if place.job is not None else [])]
    found: list[tuple[float, Path]] = []
    for log in logs:
        try:
            found.append((log.stat().st_mtime, log))
        except (OSError, ValueError):  # a name from jobs.jsonl may be one that no file can have
            continue
    return max(found)[1] if found else None
