"""What the files of one run say, read in the time that a thousand runs leave for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.cluster import attempts
from prefopt.cluster.attempts import Attempt
from prefopt.cluster.local import LOG
from prefopt.runs.directory import RunDirectory, State
from prefopt.state.records import Kind, Place
from prefopt.state.tail import as_count, read_last
from prefopt.storage.lock_file import Sighting, look_at

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
    problem: str = ""
    decision: Attempt | None = None
    lock: Sighting | None = None
    has_result: bool = True
    log: Path | None = None


def read_facts(place: Place) -> Facts:
    """Reads a run; never fails of what others are writing, or of what is not there."""
    run = place.run
    status, problem = _read_status(run.status)
    if problem:
        return Facts(problem=problem, log=find_log(place))
    state = State(status["state"]) if status else None
    step, number = as_count(status.get("step")) or 0, as_count(status.get("attempts")) or 0
    message = status.get("message")
    message = message if isinstance(message, str) else ""
    if state in OVER:
        has_result = state is State.pruned or place.kind is Kind.reference or run.model.is_dir()
        return Facts(state, step, number, message, has_result=has_result)
    return Facts(
        state,
        step,
        number,
        message,
        decision=read_decision(run),
        lock=look_at(run.path),
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


def _read_status(path: Path) -> tuple[dict[str, Any], str]:
    """status.json, empty without one; and what is wrong with it, in words."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"status.json cannot be read ({getattr(error, 'strerror', None) or error})"
    state = value.get("state") if isinstance(value, dict) else None
    if state not in [known.value for known in State]:
        return {}, f"status.json has no state that this version knows ({state!r})"
    return value, ""


def read_decision(run: RunDirectory) -> Attempt | None:
    """What the job of a run has decided after its last attempt; None without one."""
    line = read_last(run.slurm / attempts.FILE, lambda value: "next" in value)
    try:
        return Attempt(**line) if line is not None else None
    except TypeError:  # of another version
        return None
