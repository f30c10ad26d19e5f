"""Slurm's commands: submitting a script, cancelling jobs, and asking for their states."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.process.errors import UserError

TIMEOUT_S = 60


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, that Slurm knows.

    Attributes:
        id: Slurm's id, with the task's index for an array, such as 12_3.
        state: Slurm's state, such as PENDING, RUNNING or COMPLETED.
        reason: Why it waits, or the nodes it runs on.
    """

    id: str
    state: str
    reason: str


def require_sbatch() -> None:
    """Raises `UserError` on a machine without sbatch."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch: not found on this machine, so nothing was submitted. Submit on a login node of the cluster, "
            "print the script with submit.dry_run=true, or run here with cluster=local."
        )


def submit(script: Path) -> str:
    """Gives a script to sbatch and returns the job's id.

    Raises:
        UserError: sbatch refuses the script; the message has its reason.
    """
    done = _run(["sbatch", "--parsable", str(script)])
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = said[0].rstrip(".") if said else f"exit code {done.returncode}"
        raise UserError(f"sbatch refused {script}: {reason}. Nothing was submitted. Without a cluster: cluster=local.")
    return done.stdout.strip().split(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs; those that have ended are ignored."""
    if jobs:
        _run(["scancel", *jobs])


def find_queued(jobs: Sequence[str]) -> list[QueuedJob]:
    """The jobs that squeue lists, arrays task by task; jobs that ended a while ago are missing.

    Raises:
        UserError: squeue fails, for example because Slurm's controller does not answer.
    """
    if not jobs or shutil.which("squeue") is None:
        return []
    done = _run(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%R", f"--jobs={','.join(jobs)}"])
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # said of a single job that ended a while ago
        raise UserError(f"squeue: {' '.join(done.stderr.split()) or 'failed'}. Try again later.")
    rows = (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
    return [QueuedJob(*row) for row in rows]


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]}: does not answer ({error}). Try again later.") from error
