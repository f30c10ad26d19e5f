"""Checks every node before ranks start there: devices, disk, the run's folder, the network between the nodes.

`look` runs once per node and writes its findings to a file; `judge` runs once, where all these files must be visible,
prints the bad nodes to stdout for Slurm, and the reasons to stderr.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefopt.distributed.entry import run_entry
from prefopt.process.terminal import printable
from prefopt.storage.files import write_json
from prefopt.storage.reading import parse_json, read_file

SUFFIX = ".node.json"
TIMEOUT_S = 60.0
"""Seconds that a node waits for the files of the other nodes, and for the all-reduce."""
MIN_TEMPORARY_GIB = 0.5
"""Least free space in the temporary folder of a node, for compiled kernels and sockets."""
ELEMENTS = 1 << 20
"""float32 values in the timed all-reduce: 4 MiB."""


@dataclass
class Finding:
    """The findings of one node.

    Attributes:
        node: The node's name in Slurm.
        problems: Problems of this node; empty if it is fit.
        folder_problems: Problems of the run's folder; all nodes share it, so no node is left out for them.
        waits_for: Number of nodes whose files this one does not see.
        all_reduce_s: Seconds of an all-reduce of 4 MiB over all nodes; None with one node.
    """

    node: str
    problems: list[str] = field(default_factory=list)
    folder_problems: list[str] = field(default_factory=list)
    waits_for: int = 0
    all_reduce_s: float | None = None


def main(argv: list[str]) -> None:
    """Runs `look` or `judge`."""
    parser = argparse.ArgumentParser("prefopt.cluster.preflight", description=__doc__)
    parser.add_argument("action", choices=["look", "judge"])
    parser.add_argument("folder", type=Path, help="of this attempt, in the run's folder")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0, help="per node")
    parser.add_argument("--min-free-gib", type=float, default=0.0)
    options = parser.parse_args(argv)
    if options.action == "look":
        finding = look(options.folder, options.nodes, options.gpus, options.min_free_gib)
        print(printable(f"preflight: {_describe(finding)}"), flush=True)
        sys.exit(1 if finding.problems or finding.folder_problems else 0)
    bad, problems = judge(options.folder, options.nodes)
    for problem in problems:
        print(printable(f"preflight: {problem}"), file=sys.stderr, flush=True)
    if bad:
        print(",".join(bad))
    sys.exit(1 if problems else 0)


def look(
    folder: Path,
    num_nodes: int,
    num_gpus: int,
    min_free_gib: float,
    *,
    count_gpus: Callable[[], int] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Finding:
    """Checks this node and writes its findings to `<folder>/<node>.node.json`.

    Args:
        folder: Folder of this attempt; must be the same on all nodes.
        num_nodes: Number of nodes that are checked.
        num_gpus: Number of GPUs that must be there.
        min_free_gib: Least free space in `folder`, GiB.
        count_gpus: Replaces the count by nvidia-smi, for tests.
        timeout_s: Seconds to wait for the other nodes' files.
    """
    finding = Finding(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    found = (count_gpus or _count_gpus)() if num_gpus else 0
    if found < num_gpus:
        finding.problems.append(f"{found} of {num_gpus} GPUs answer (nvidia-smi -L)")
    temporary = tempfile.gettempdir()
    free_gib = shutil.disk_usage(temporary).free / 2**30
    if free_gib < MIN_TEMPORARY_GIB:
        finding.problems.append(f"{free_gib:.1f} GiB free in {temporary}, its own folder for temporary files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_gib = shutil.disk_usage(folder).free / 2**30
        if free_gib < min_free_gib:
            finding.folder_problems.append(
                f"{free_gib:.1f} GiB free for {folder}, cluster.min_free_gib asks for {min_free_gib}"
            )
        write_json(folder / f"{finding.node}{SUFFIX}", asdict(finding))
    except OSError as error:
        finding.problems.append(f"{folder} cannot be written ({error.strerror or error})")
        return finding
    finding.waits_for = num_nodes - _wait_for_files(folder, num_nodes, timeout_s)
    if num_nodes > 1 and not finding.waits_for and not any(other.problems for other in read_findings(folder)):
        finding.all_reduce_s = _time_all_reduce(finding, num_nodes)
    write_json(folder / f"{finding.node}{SUFFIX}", asdict(finding))
    return finding


def judge(folder: Path, num_nodes: int) -> tuple[list[str], list[str]]:
    """Returns the nodes to leave out, and the problems in words; two empty lists if all is well."""
    findings = read_findings(folder)
    problems = [f"{found.node}: {problem}" for found in findings for problem in found.problems + found.folder_problems]
    bad = [finding.node for finding in findings if finding.problems]
    if len(bad) == num_nodes > 1:
        problems.append("every node has a problem, so it is the settings' or the image's: no node is left out")
        bad = []
    missing = num_nodes - len(findings)
    if missing or any(finding.waits_for for finding in findings):
        seen = ", ".join(finding.node for finding in findings) or "none"
        problems.append(
            f"{folder}: written by {num_nodes} nodes, seen here are the files of {seen}. The others died, or the "
            "folder is not on a file system that all nodes share: set run.root to a shared one."
        )
    return bad, problems


def read_findings(folder: Path) -> list[Finding]:
    """The findings that nodes have written so far, ordered by node name."""
    return [Finding(**parse_json(read_file(path))) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def _describe(finding: Finding) -> str:
    if finding.problems or finding.folder_problems:
        return f"{finding.node}: {'; '.join(finding.problems + finding.folder_problems)}"
    if finding.waits_for:
        return f"{finding.node}: does not see the files of {finding.waits_for} other nodes"
    network = "" if finding.all_reduce_s is None else f", all-reduce of 4 MiB in {finding.all_reduce_s * 1e3:.1f} ms"
    return f"{finding.node}: fit{network}"


def _count_gpus() -> int:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def _wait_for_files(folder: Path, num_nodes: int, timeout_s: float) -> int:
    """Waits until the files of all nodes are visible here, up to `timeout_s`; returns the number of visible files."""
    deadline = time.monotonic() + timeout_s
    while (seen := len(list(folder.glob(f"*{SUFFIX}")))) < num_nodes and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def _time_all_reduce(finding: Finding, num_nodes: int) -> float | None:
    """Seconds of the fastest of three all-reduces; None, with a problem added to `finding`, if they fail."""
    try:
        import torch
        import torch.distributed as dist

        with_cuda = torch.cuda.is_available()
        dist.init_process_group(
            "nccl" if with_cuda else "gloo",
            rank=int(os.environ["SLURM_NODEID"]),
            world_size=num_nodes,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        values: Any = torch.ones(ELEMENTS, device="cuda:0" if with_cuda else "cpu")
        seconds = []
        for _ in range(3):
            begun = time.monotonic()
            dist.all_reduce(values)
            total = float(values[0])  # waits for the device
            seconds.append(time.monotonic() - begun)
            values /= num_nodes
            assert total == num_nodes, f"the sum over {num_nodes} nodes is {total}"
        dist.destroy_process_group()
        return min(seconds)
    except Exception as error:  # drivers and networks fail in many ways
        finding.problems.append(f"no all-reduce with the other nodes ({str(error).splitlines()[0]})")
        return None


if __name__ == "__main__":
    run_entry(main)
