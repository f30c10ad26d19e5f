"""What a folder says of its jobs: `slurm/jobs.jsonl` has the submitted ones, `slurm/attempts.jsonl` their ends."""

from dataclasses import dataclass, replace
from pathlib import Path

from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import read_last, read_lines, read_objects

JOBS = "jobs.jsonl"
ATTEMPTS = "attempts.jsonl"
LOG = "local.log"
"""In `slurm/`: what a run prints that was submitted on this machine, without Slurm."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job of a run.

    Attributes:
        id: Slurm's id, with the task's index for an array.
        log: Where it writes, there or not.
        time: When it was submitted, ISO 8601 in UTC.
        command: What submitted it; None if that was not recorded.
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
        job: Slurm's id, with the task's index for an array.
        ended: When, ISO 8601 in UTC.
        state: Of status.json; "none" without one.
        from_step: Where the attempt before had come to.
        to_step: The last saved step.
        code: Exit code of the step that ran the ranks.
        next: done, again or stop.
        why: For people.
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
    """The newest job of each run that was submitted from a folder, by the name of the run's folder.

    Args:
        folder: Of a run or a sweep.
        prepare: In a sweep, the name of the run of a job that prepares it.
    """
    jobs: dict[str, Submitted] = {}
    for line in read_objects(folder / "slurm" / JOBS):
        number, tasks, command = str(line.get("job", "")), line.get("tasks"), line.get("command")
        log = folder / "slurm" / Path(str(line.get("log", ""))).name  # here, wherever the folder was then
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
    """The attempts so far that came to their end; those that Slurm killed whole left no line."""
    path = run.slurm / ATTEMPTS
    return [Attempt(**line) for line in read_lines(path)] if path.exists() else []


def read_last_attempt(run: RunDirectory) -> Attempt | None:
    """The attempt whose end the job of a run saw last, with what it decided then; None without one."""
    line = read_last(run.slurm / ATTEMPTS, lambda value: "next" in value)
    try:
        return Attempt(**line) if line is not None else None
    except TypeError:  # of another version
        return None
