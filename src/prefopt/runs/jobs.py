"""Reads a folder's jobs: submitted ones from `slurm/jobs.jsonl`, ended attempts from `slurm/attempts.jsonl`."""

from dataclasses import dataclass, replace
from pathlib import Path

from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import read_last, read_lines, read_objects

JOBS = "jobs.jsonl"
ATTEMPTS = "attempts.jsonl"
LOG = "local.log"
"""File in `slurm/` with the output of a run that was submitted on this machine, without Slurm."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submitted job of a run.

    Attributes:
        id: Slurm's id; for an array with the task's index.
        log: Path of its log, which need not exist.
        time: Time of submission, ISO 8601 in UTC.
        command: Command that submitted it; None if it was not recorded.
    """

    id: str
    log: Path
    time: str
    command: str | None = None

    @property
    def number(self) -> str:
        """The id of the whole array."""
        return self.id.split("_")[0]


@dataclass(frozen=True)
class Attempt:
    """One line of `attempts.jsonl`.

    Attributes:
        job: Slurm's id; for an array with the task's index.
        ended: Time of its end, ISO 8601 in UTC.
        state: State in status.json; "none" without that file.
        from_step: The last saved step when the attempt began.
        to_step: The last saved step.
        code: Exit code of the job step that ran the ranks.
        next: What the job does next: done, again or stop.
        why: Reason for `next`, for users.
    """

    job: str
    ended: str
    state: str
    from_step: int
    to_step: int
    code: int
    next: str
    why: str


def read_jobs(folder: Path, prepare: str = "") -> dict[str, Submitted]:
    """Returns the newest job of each run that was submitted from a folder, by the name of the run's folder.

    Args:
        folder: Folder of a run or a sweep.
        prepare: For a sweep, the folder name of the run that prepares it.
    """
    jobs: dict[str, Submitted] = {}
    for line in read_objects(folder / "slurm" / JOBS):
        number, tasks, command = str(line.get("job", "")), line.get("tasks"), line.get("command")
        log = folder / "slurm" / Path(str(line.get("log", ""))).name  # here, even if the folder was moved
        command = command if isinstance(command, str) else None
        job = Submitted(number, log, str(line.get("submitted", "")), command)
        if isinstance(tasks, dict):
            for index, run in tasks.items():
                jobs[Path(str(run)).name] = _with_patterns(replace(job, id=f"{number}_{index}"), number, str(index))
        else:
            name = prepare if line.get("kind") == "prepare" else ""
            jobs[name or folder.resolve().name] = _with_patterns(job, number, "")
    return jobs


def _with_patterns(job: Submitted, number: str, index: str) -> Submitted:
    name = job.log.name.replace("%j", number).replace("%A", number).replace("%a", index)
    return replace(job, log=job.log.with_name(name))


def read_attempts(run: RunDirectory) -> list[Attempt]:
    """Returns the attempts that have ended. An attempt whose whole job Slurm killed has left no line."""
    path = run.slurm / ATTEMPTS
    return [Attempt(**line) for line in read_lines(path)] if path.exists() else []


def read_last_attempt(run: RunDirectory) -> Attempt | None:
    """Returns the last attempt that the run's job has recorded, with its decision; None without one."""
    line = read_last(run.slurm / ATTEMPTS, lambda value: "next" in value)
    try:
        attempt = Attempt(**line) if line is not None else None
    except TypeError:  # written by another version
        return None
    return attempt if attempt is not None and _is_whole(attempt) else None


def _is_whole(attempt: Attempt) -> bool:
    texts = (attempt.job, attempt.ended, attempt.state, attempt.next, attempt.why)
    numbers = (attempt.from_step, attempt.to_step, attempt.code)
    return all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)
