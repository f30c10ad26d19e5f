"""Jobs for the cluster's queue, and the tasks of each job."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from prefopt.process.errors import UserError


@dataclass(frozen=True)
class Task:
    """One run of a job.

    Attributes:
        run: Absolute path of the run's folder.
        overrides: Arguments of the job's module.
    """

    run: Path
    overrides: Sequence[str]


@dataclass(frozen=True)
class Job:
    """One submission to the queue: a single run, or an array of runs with one script.

    Attributes:
        name: Name in the queue.
        folder: Absolute path; script, logs and tasks are written to its `slurm/`.
        module: Python module to run, such as prefopt.train.
        tasks: Tasks by their index in the array; a single run is one task.
        is_array: Whether it is submitted as an array; an array may have one task.
        is_search: Whether each task gets its overrides from the search when it starts.
        parallel: Most tasks that run at the same time; None for no limit.
        after: Ids of jobs that must have succeeded before this one starts.
        waits: Whether it also waits for the job that is submitted just before it.
    """

    name: str
    folder: Path
    module: str
    tasks: dict[int, Task]
    is_array: bool = False
    is_search: bool = False
    parallel: int | None = None
    after: Sequence[str] = field(default_factory=tuple)
    waits: bool = False

    @property
    def title(self) -> str:
        """Name of the job, with the number of tasks of an array."""
        return f"{self.name}, {len(self.tasks)} tasks" if self.is_array else self.name

    def waiting(self) -> "Job":
        """Returns this job, set to start after the job that is submitted just before it."""
        return replace(self, waits=True)

    def with_ids(self, ids: Sequence[str]) -> "Job":
        """Returns this job; if it waits, with the last of `ids` (the jobs submitted so far) added to `after`."""
        return replace(self, after=[*self.after, ids[-1]]) if self.waits else self

    def to_record(self, number: str) -> dict[str, object]:
        """Returns the entry of `slurm/jobs.jsonl` for this job; `number` is the id that the queue gave it."""
        return {
            "job": number,
            "kind": self.kind,
            "script": str(self.script),
            "log": str(self.log),
            "tasks": {str(index): str(task.run) for index, task in self.tasks.items()} if self.is_array else None,
            "after": list(self.after),
            "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    @property
    def kind(self) -> str:
        """Last part of the module's name, such as `train`."""
        return self.module.rpartition(".")[2]

    @property
    def script(self) -> Path:
        return self.folder / "slurm" / f"{self.kind}.sh"

    @property
    def task_folder(self) -> Path:
        """Folder with a file for each task of an array, which lists its run and overrides, one per line."""
        return self.folder / "slurm" / f"{self.kind}.tasks"

    @property
    def log(self) -> Path:
        """Path of the log, with Slurm's patterns for job and task."""
        return self.folder / "slurm" / f"{self.kind}-{'%A_%a' if self.is_array else '%j'}.log"


def write_tasks(job: Job) -> None:
    """Writes the files in `job.task_folder` that the tasks of an array read.

    Raises:
        UserError: An override has a line break.
    """
    job.task_folder.mkdir(parents=True, exist_ok=True)
    for index, task in job.tasks.items():
        lines = [str(task.run), *task.overrides]
        for line in lines:
            require_one_line(line)
        path = job.task_folder / str(index)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def require_one_line(text: str) -> None:
    """Refuses text that does not fit on one line of a task file or script.

    Raises:
        UserError: The text has a line break or a null character.
    """
    if "\n" in text or "\0" in text:
        raise UserError(f"{text!r}: a line break cannot be passed to a job. Put the value into a config file.")
