"""Looks at many runs: reads their files, then asks Slurm once, then concludes the state of each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prefopt.cluster.slurm import QueuedJob
from prefopt.runs.directory import State
from prefopt.runs.find import Group, Place
from prefopt.runs.read import OVER, Facts, read_facts
from prefopt.state.conclude import conclude
from prefopt.state.progress import Progress, count_steps, read_progress, read_trainer_settings
from prefopt.state.queue import EXECUTING, Queue, ask_slurm
from prefopt.state.run_status import RunStatus, Word
from prefopt.state.wording import clean, describe_time

QUIET_S = 600.0
QUIET_LINES = 5
"""A run is quiet if it has logged nothing for `QUIET_S` seconds and for the usual time of `QUIET_LINES` lines."""
SECOND_LOOKS = 3
"""How often a run that seems killed is read again: it may just have ended."""


@dataclass(frozen=True, slots=True)
class View:
    """The runs of each group with their states, and notes on what could not be found out."""

    groups: list[tuple[Group, list[RunStatus]]]
    notes: list[str]

    @property
    def runs(self) -> list[RunStatus]:
        return [run for _, runs in self.groups for run in runs]


def look(
    groups: Sequence[Group], *, ask: Callable[..., Queue] = ask_slurm, clock: Callable[[], float] = time.time
) -> View:
    """Finds the state of runs; writes nothing.

    Args:
        groups: The runs.
        ask: Asks Slurm; replaced in tests.
        clock: Returns seconds since the epoch; replaced in tests.
    """
    facts = {id(place): read_facts(place) for group in groups for place in group.places}
    submitted = [place for group in groups for place in group.places if place.job is not None]
    still_open = [place.job for place in submitted if facts[id(place)].state not in OVER]
    queue = ask([place.job for place in submitted], still_open)
    seen = [(group, [_describe(place, facts[id(place)], queue, clock) for place in group.places]) for group in groups]
    return View(seen, queue.notes)


def _describe(place: Place, facts: Facts, queue: Queue, clock: Callable[[], float]) -> RunStatus:
    queued = queue.jobs.get(place.job.id) if place.job is not None else None
    conclusion = conclude(facts, place.job, queued)
    for _ in range(SECOND_LOOKS):
        if conclusion.word is not Word.killed:
            break
        facts = read_facts(place)
        conclusion = conclude(facts, place.job, queued)
    status = RunStatus(
        place,
        conclusion.word,
        clean(conclusion.why),
        attempts=facts.attempts,
        log=facts.log,
        queue=queued.state if queued is not None else None,
        is_live=conclusion.is_live,
    )
    doing = ""
    if facts.state is not None and place.kind.trains:
        status, doing = _with_progress(status, facts, clock())
    return _with_words(status, queued, doing) if status.word is Word.running else status


def _with_progress(status: RunStatus, facts: Facts, now: float) -> tuple[RunStatus, str]:
    """Adds steps, loss, time and, for a run that trains, the time left; also returns what it does if not training."""
    run = status.place.run
    is_done = facts.state is State.done
    settings = {} if is_done else read_trainer_settings(run)
    total = facts.step if is_done else count_steps(run, settings)
    progress = read_progress(run, now)
    status = replace(status, step=facts.step, total=total)
    if progress is not None:
        step = max(facts.step, progress.step)
        status = replace(status, step=step, loss=progress.loss, time_s=progress.time_s)
    if status.word is not Word.running or facts.state is not State.running or status.why:
        return status, ""
    if progress is None:
        return status, "before its first log line"
    if total is not None and progress.step >= total:
        return status, "evaluating"
    status = replace(status, eta_s=None if total is None else progress.eta_s(total))
    return status, _how_quiet(progress, settings)


def _how_quiet(progress: Progress, settings: dict[str, str]) -> str:
    log_every = settings.get("log_every", "")
    line_s = progress.step_s * (int(log_every) if log_every.isdecimal() else 1)
    is_quiet = progress.age_s > max(QUIET_S, QUIET_LINES * line_s)
    return f"no log line for {describe_time(progress.age_s)}" if is_quiet else ""


def _with_words(status: RunStatus, queued: QueuedJob | None, doing: str) -> RunStatus:
    """Adds to a running run's `why` what it does, where it runs, and which attempt it is."""
    where = f"job {queued.id} on {queued.reason}" if queued is not None and queued.state in EXECUTING else ""
    attempt = f"attempt {status.attempts}" if status.attempts > 1 else ""
    return replace(status, why=", ".join(part for part in (status.why, doing, where, attempt) if part))
