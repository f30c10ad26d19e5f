"""Renders a job as a batch script: the one place where settings become shell and #SBATCH lines."""

import os
import re
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from prefopt.config.cluster import ClusterConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import expand, shipped
from prefopt.process.terminal import quote
from prefopt.sweeps.jobs import Job, require_one_line

TEMPLATE = "slurm/job.sh.j2"
MAX_BAD_NODES = 3
"""Most restarts in a row because of a failed preflight."""


def render(job: Job, cluster: ClusterConfig, *, python: str = sys.executable, workdir: Path | None = None) -> str:
    """The batch script of a job.

    Args:
        job: The job.
        cluster: Where it runs, and with which resources.
        python: The Python interpreter on the nodes; ignored with a container.
        workdir: Folder in which relative paths start; default: the current one.

    Raises:
        UserError: A line of the script cannot hold a path or an override.
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
    """Nodes and devices in words, such as `2 nodes x 8 GPUs`."""
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''}"
    unit = "GPU" if cluster.gpus_per_node else "CPU rank"
    number = cluster.num_ranks_per_node
    return f"{nodes} x {number} {unit}{'s' if number > 1 else ''}"


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
    """Task indices as ranges, such as 0-4,7, with the limit of parallel tasks, such as %4."""
    ranges: list[list[int]] = []
    for index in sorted(job.tasks):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return text if job.parallel is None else f"{text}%{job.parallel}"


def _in_option(path: Path, folder: Path) -> str:
    """Quotes a path for an #SBATCH line; `%` in `folder` is escaped, else sbatch would replace patterns such as %j."""
    text = os.fspath(path).replace(os.fspath(folder), os.fspath(folder).replace("%", "%%"), 1)
    if re.search(r"[\"\\\n]", text):
        raise UserError(f"{text}: sbatch takes no path with quotes, backslashes or line breaks. Rename it.")
    return text if re.fullmatch(r"[\w./%+,=@:-]+", text) else f'"{text}"'


def _quote(value: object) -> str:
    text = str(value)
    require_one_line(text)
    return quote(text)
