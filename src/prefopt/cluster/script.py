"""A job as a batch script: the one place where settings become shell and #SBATCH lines."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from prefopt.cluster.schema import ClusterConfig
from prefopt.errors import UserError
from prefopt.paths import expand, shipped
from prefopt.terminal import quote

TEMPLATE = "slurm/job.sh.j2"
MAX_BAD_NODES = 3
"""Restarts in a row that a job's preflight may ask for."""


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


def render(job: Job, cluster: ClusterConfig, *, python: str = sys.executable, workdir: Path | None = None) -> str:
    """The batch script of a job.

    Args:
        job: What runs.
        cluster: Where.
        python: The interpreter on the nodes; without effect in a container.
        workdir: Where relative paths start; unset: here.

    Raises:
        UserError: A path or override that a line of the script cannot hold.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["sh"] = _quote
    single = None if job.is_array else next(iter(job.tasks.values()))
    return environment.from_string(shipped(TEMPLATE).read_text(encoding="utf-8")).render(
        title=f"{job.name}: {job.module} on {describe(cluster)}",
        options=_options(job, cluster),
        workdir=workdir or Path.cwd(),
        environment=None if cluster.environment is None else expand(cluster.environment).absolute(),
        python=python,
        container=cluster.container,
        container_options=cluster.container_options,
        module=job.module,
        tasks=job.task_folder if job.is_array else None,
        search=job.folder if job.is_search else None,
        run=single and single.run,
        overrides=list(single.overrides) if single else [],
        nodes=cluster.nodes,
        gpus=cluster.gpus_per_node,
        ranks_per_node=cluster.num_ranks_per_node,
        cpus=cluster.num_cpus_per_node,
        threads=max(1, cluster.num_cpus_per_node // cluster.num_ranks_per_node),
        launched=cluster.num_ranks > 1 or cluster.gpus_per_node > 0,
        margin_s=cluster.margin_s,
        preflight=cluster.preflight,
        min_free_gib=cluster.min_free_gib,
        max_bad_nodes=MAX_BAD_NODES,
        max_attempts=cluster.max_attempts,
        max_crashes=cluster.max_crashes,
    )


def describe(cluster: ClusterConfig) -> str:
    """Nodes and devices in words."""
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''}"
    unit = "GPU" if cluster.gpus_per_node else "CPU rank"
    number = cluster.num_ranks_per_node
    return f"{nodes} x {number} {unit}{'s' if number > 1 else ''}"


def write_tasks(job: Job) -> None:
    """Writes what the tasks of an array read."""
    job.task_folder.mkdir(parents=True, exist_ok=True)
    for index, task in job.tasks.items():
        lines = [str(task.run), *task.overrides]
        for line in lines:
            _require_one_line(line)
        path = job.task_folder / str(index)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _options(job: Job, cluster: ClusterConfig) -> list[str]:
    gres = cluster.gres or (f"gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else None)
    named = {
        "job-name": re.sub(r"[^\w.-]+", "-", job.name),
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.num_cpus_per_node,
        "gres": gres,
        "mem": cluster.memory,
        "exclude": cluster.exclude,
        "time": cluster.time,
        "signal": f"B:USR1@{cluster.margin_s}",
        "open-mode": "append",
        "output": _in_option(job.log, job.folder),
        "array": _array(job) if job.is_array else None,
        "dependency": f"afterok:{':'.join(job.after)}" if job.after else None,
    }
    lines = [f"--{name}={value}" for name, value in named.items() if value is not None]
    lines.append("--requeue")
    if job.after:
        lines.append("--kill-on-invalid-dep=yes")
    return [*lines, *cluster.options]


def _array(job: Job) -> str:
    """Indices as ranges, such as 0-4,7, with the throttle."""
    ranges: list[list[int]] = []
    for index in sorted(job.tasks):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return text if job.parallel is None else f"{text}%{job.parallel}"


def _in_option(path: Path, folder: Path) -> str:
    """A path in an #SBATCH line, quoted as sbatch reads it; patterns such as %j are not meant in `folder`."""
    text = os.fspath(path).replace(os.fspath(folder), os.fspath(folder).replace("%", "%%"), 1)
    if re.search(r"[\"\\\n]", text):
        raise UserError(f"{text}: sbatch takes no path with quotes, backslashes or line breaks. Rename it.")
    return text if re.fullmatch(r"[\w./%+,=@:-]+", text) else f'"{text}"'


def _quote(value: object) -> str:
    text = str(value)
    _require_one_line(text)
    return quote(text)


def _require_one_line(text: str) -> None:
    if "\n" in text or "\0" in text:
        raise UserError(f"{text!r}: a line break cannot be passed to a job. Put the value into a config file.")
