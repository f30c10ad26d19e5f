"""Run folders in every state, and a Slurm that answers what a test says: for tests of what reads states."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from prefopt.cluster.slurm import QueuedJob
from prefopt.runs.find import find_groups
from prefopt.runs.jobs import ATTEMPTS, Attempt
from prefopt.state.look import View, look
from prefopt.state.queue import ask_slurm
from prefopt.state.run_status import RunStatus
from prefopt.storage.files import append_line
from prefopt.storage.lock_file import Holder
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.points import Point

SUBMITTED = "2026-01-01T10:00:00+00:00"
LATER = "2026-01-01T11:00:00+00:00"
TRAINER = (
    "run:\n  name: x\ntrainer:\n  max_steps: {max_steps}\n  num_epochs: 1.0\n  log_every: 10\nlogger:\n  name: none\n"
)


def write_run(
    folder: Path,
    state: str | None = None,
    *,
    step: int = 0,
    message: str = "",
    attempts: int = 1,
    lines: Sequence[Mapping[str, Any]] = (),
    max_steps: int | None = None,
) -> Path:
    """Writes a run with what its state is read from, and returns its folder.

    Args:
        folder: Of the run.
        state: Of status.json; None: no status.json.
        step: The last saved step.
        message: Of status.json.
        attempts: Of status.json.
        lines: Of metrics.jsonl; None of them: no such file.
        max_steps: Of config.yaml; None: no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        status = {"state": state, "step": step, "attempts": attempts, "message": message}
        (folder / "status.json").write_text(json.dumps(status))
    if state == "done":
        (folder / "model").mkdir(exist_ok=True)
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if max_steps is not None:
        (folder / "config.yaml").write_text(TRAINER.format(max_steps=max_steps))
    return folder


def write_prepared(folder: Path, state: str = "done") -> Path:
    """Writes a folder in which `prefopt prepare` alone has worked, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {"state": state, "step": 0, "attempts": 1, "message": ""}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(TRAINER.format(max_steps=10))
    command = "python -m prefopt.prepare run.name=x"
    (folder / "provenance.json").write_text(json.dumps({"command": command}))
    return folder


def write_sweep(folder: Path, *names: str, **more: Any) -> Path:
    """Writes the sweep.json of points with these names, and returns the folder."""
    SweepFolder(folder).write([Point(i, name, {}, []) for i, name in enumerate(names)], "0" * 64, **more)
    return folder


def submit(
    folder: Path, job: str, tasks: Mapping[int, str] | None = None, *, kind: str = "train", **more: Any
) -> None:
    """Adds a job to a folder's jobs.jsonl: of an array if it has tasks, by index their run's name."""
    log = folder / "slurm" / f"{kind}-{'%j' if tasks is None else '%A_%a'}.log"
    runs = None if tasks is None else {str(index): str(folder / name) for index, name in tasks.items()}
    line = {"job": job, "kind": kind, "log": str(log), "tasks": runs, "submitted": SUBMITTED}
    append_line(folder / "slurm" / "jobs.jsonl", {**line, **more})


def write_log(folder: Path, name: str, text: str) -> Path:
    """Writes a log to a folder's slurm/, and returns its path."""
    path = folder / "slurm" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def decide(run: Path, following: str, **changes: Any) -> None:
    """Adds a line to a run's attempts.jsonl."""
    decided = Attempt("7", LATER, "failed", 0, 0, 1, following, "why it was decided")
    append_line(run / "slurm" / ATTEMPTS, {**asdict(decided), **changes})


def leave_lock(run: Path, *, age_s: float = 0.0, **changes: Any) -> Path:
    """A lock of this process but for `changes` of its holder, last touched `age_s` ago."""
    path = run.parent / f".{run.name}.lock"
    path.write_text(json.dumps({**json.loads(Holder.of_this_process().content), **changes}))
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def leave_dead_lock(run: Path) -> Path:
    """A lock of a process that had this one's number before."""
    return leave_lock(run, started=1)


def look_at(*folders: Path, slurm: Mapping[str, str] | None = None, ended: Mapping[str, str] | None = None) -> View:
    """Looks at folders.

    Args:
        folders: As a user names them.
        slurm: What squeue says: id -> "STATE" or "STATE reason".
        ended: What sacct says: id -> state.
    """
    rows = [QueuedJob(job, *words.partition(" ")[::2]) for job, words in (slurm or {}).items()]
    past = [QueuedJob(job, state, "") for job, state in (ended or {}).items()]
    return look(find_groups(folders), ask=partial(ask_slurm, queued=lambda jobs: rows, ended=lambda jobs: past))


def look_at_one(run: Path, **said: Any) -> RunStatus:
    """Looks at one run; `said` as for `look_at`."""
    (status,) = look_at(run, **said).runs
    return status


def words_of(view: View) -> dict[str, str]:
    """State by name of the run."""
    return {run.place.name: run.word.value for run in view.runs}
