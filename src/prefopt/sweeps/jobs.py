"""What is submitted at once, and what each of its tasks runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError


@dataclass(frozen=True)
class Task:
    """One run of a job.

    Attributes:
        run: Its folder, absolute.
        overrides: What the module gets.
    """

    run: Path
    overrides: Sequence[str]


@dataclass(frozen=True)
class Job:
    """What is submitted at once: one run, or an array of them with one script.

    Attributes:
        name: For people, in the queue.
        folder: Absolute; script, logs and tasks go to its `slurm/`.
        module: What Python runs, such as prefopt.train.
        tasks: One run, or the tasks of an array by their index in it.
        is_array: Submitted as an array, be it of one task.
        is_search: Each task asks for its overrides when it starts.
        parallel: Tasks at the same time; None for no limit.
        after: Job ids that must have succeeded before.
        waits: For the job that is submitted just before it as well.
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
        """Name and number of runs."""
        return f"{self.name}, {len(self.tasks)} tasks" if self.is_array else self.name

    def waiting(self) -> "Job":
        """The same, to start after the job submitted before it."""
        return replace(self, waits=True)

    def with_ids(self, ids: Sequence[str]) -> "Job":
        """The same with the id of the job it waits for, of those submitted so far."""
        return replace(self, after=[*self.after, ids[-1]]) if self.waits else self

    def to_record(self, number: str) -> dict[str, Any]:
        """A line of `slurm/jobs.jsonl`."""
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
        """Last word of the module."""
        return self.module.rpartition(".")[2]

    @property
    def script(self) -> Path:
        return self.folder / "slurm" / f"{self.kind}.sh"

    @property
    def task_folder(self) -> Path:
        """Where each task of an array finds its run and overrides, one per line."""
        return self.folder / "slurm" / f"{self.kind}.tasks"

    @property
    def log(self) -> Path:
        """With Slurm's patterns for job, array and task."""
        return self.folder / "slurm" / f"{self.kind}-{'%A_%a' if self.is_array else '%j'}.log"


def write_tasks(job: Job) -> None:
    """Writes what the tasks of an array read."""
    job.task_folder.mkdir(parents=True, exist_ok=True)
    for index, task in job.tasks.items():
        lines = [str(task.run), *task.overrides]
        for line in lines:
            require_one_line(line)
        path = job.task_folder / str(index)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def require_one_line(text: str) -> None:
    """Refuses what a line of a file of tasks, or of a script, cannot hold.

    Raises:
        UserError: It has a line break.
    """
    if "\n" in text or "\0" in text:
        raise UserError(f"{text!r}: a line break cannot be passed to a job. Put the value into a config file.")
