"""The jobs of a run or sweep that Slurm holds: those to wait for, and those that stand in the way."""

import re
from pathlib import Path

from prefopt.cluster.slurm import find_queued
from prefopt.config.load import load_config
from prefopt.process.errors import UserError
from prefopt.process.paths import expand
from prefopt.process.ranks import Launch
from prefopt.process.terminal import quote
from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import read_lines
from prefopt.sweeps.folder import SweepFolder, is_done
from prefopt.sweeps.points import Axes

WAITING_OR_RUNNING = {"PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "CONFIGURING", "COMPLETING", "REQUEUE_HOLD"}
"""States of Slurm in which a job is not over."""


def find_parent(after: str, axes: Axes, config_dir: str | None, launch: Launch) -> list[str]:
    """Ids of the jobs to wait for: `after` itself if it is an id, else the queued jobs of that run or sweep.

    Raises:
        UserError: There is no such run or sweep, or it is neither done nor queued.
    """
    if re.fullmatch(r"\d+(_\d+)?", after):
        return [after]
    root = expand(load_config(axes.base, config_dir, launch).run.root)
    for path in (expand(after), root / after):
        if path.is_dir():
            break
    else:
        raise UserError(f"submit.after={after}: no such run, neither here nor in {root}. Give its folder or a job id.")
    run, sweep = RunDirectory(path), SweepFolder(path)
    if (sweep.exists() and not sweep.unfinished()) or is_done(run):
        return []
    queued = queued_jobs(path)
    if not queued:
        state = run.read_status().get("state", "not begun")
        raise UserError(f"submit.after={after}: {path} is {state}, and no job of it is queued. Submit it first.")
    return queued


def queued_jobs(folder: Path) -> list[str]:
    """Ids of the jobs of a run or sweep that wait or run in Slurm."""
    path = folder / "slurm" / "jobs.jsonl"
    ids = [str(line["job"]) for line in read_lines(path)] if path.exists() else []
    alive = {job.id.split("_")[0] for job in find_queued(ids) if job.state in WAITING_OR_RUNNING}
    return [number for number in ids if number in alive]


def refuse_queued(folder: Path) -> None:
    """Refuses a run or sweep of which jobs are queued.

    Raises:
        UserError: It names the jobs.
    """
    queued = queued_jobs(folder)
    if queued:
        raise UserError(
            f"{folder}: job {', '.join(queued)} is queued or running for it. See prefopt status {quote(folder)}; "
            f"scancel {' '.join(queued)} takes it back."
        )
