"""Asks Slurm for the states of jobs: squeue for those that wait, run or ended lately, else sacct if available."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from prefopt.cluster.queued import WAITING_OR_RUNNING
from prefopt.cluster.slurm import TIMEOUT_S, QueuedJob, find_queued
from prefopt.process.errors import UserError
from prefopt.runs.jobs import Submitted

EXECUTING = frozenset({"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"})
"""States of a job that has nodes."""
WAITING = frozenset({*WAITING_OR_RUNNING, "SPECIAL_EXIT", "RESV_DEL_HOLD"}) - EXECUTING
"""States of a job that has no nodes yet and waits for some."""
SEVERAL = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", re.ASCII)
"""Pattern of an id under which Slurm lists several tasks of an array together."""

Ask = Callable[[Sequence[str]], list[QueuedJob]]


@dataclass(frozen=True)
class Queue:
    """The answer of Slurm.

    Attributes:
        jobs: Jobs by id; for an array with the task's index.
        notes: What could not be found out, for users.
    """

    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_ended(jobs: Sequence[str]) -> list[QueuedJob]:
    """Asks sacct for jobs that are over; empty if there is no sacct or the cluster keeps no accounts."""
    if not jobs or shutil.which("sacct") is None:
        return []
    columns = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    command = ["sacct", *columns, f"--jobs={','.join(jobs)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = (line.split("|") for line in done.stdout.splitlines() if line.count("|") == 1)
    ended = [QueuedJob(number, state.split(" ")[0], "") for number, state in rows]  # as in "CANCELLED by 1000"
    return [job for job in ended if job.state not in EXECUTING | WAITING]  # jobs that wait or run are left to squeue


def ask_slurm(
    jobs: Iterable[Submitted], open_jobs: Iterable[Submitted], *, queued: Ask = find_queued, ended: Ask = find_ended
) -> Queue:
    """Asks squeue once; then asks sacct once if squeue does not know the job of a run that is not done.

    Args:
        jobs: The newest job of every run.
        open_jobs: The newest jobs of runs that are not done.
        queued: Asks squeue; replaced in tests.
        ended: Asks sacct; replaced in tests.
    """
    queue = Queue()
    wanted = _numbers(jobs)
    if not wanted:
        return queue
    if queued is find_queued and shutil.which("squeue") is None:
        queue.notes.append("squeue is not on this machine: which jobs wait or run is not known here")
    try:
        queue.jobs.update(_by_id(queued(wanted)))
    except UserError as error:
        queue.notes.append(f"{error} Which jobs wait or run is not known")
    unknown = [job for job in open_jobs if job.id not in queue.jobs]
    if unknown:
        queue.jobs.update({id: job for id, job in _by_id(ended(_numbers(unknown))).items() if id not in queue.jobs})
    return queue


def _numbers(jobs: Iterable[Submitted]) -> list[str]:
    return sorted({job.number for job in jobs if job.number.isascii() and job.number.isdecimal()}, key=int)


def _by_id(rows: Iterable[QueuedJob]) -> dict[str, QueuedJob]:
    return {id: replace(row, id=id, reason=row.reason.strip("()")) for row in rows for id in _expand(row.id)}


def _expand(id: str) -> list[str]:
    """Expands an id such as 12_[0-2,5%4] to the ids of its tasks."""
    several = SEVERAL.fullmatch(id)
    if several is None:
        return [id]
    indices: list[int] = []
    for part in several[2].split(","):
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    return [f"{several[1]}_{index}" for index in indices]
