"""One cluster for all tests of this folder, and runs small enough for it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.tracking.metrics import TIMES
from tests.conftest import SITE, build_tiny_model, quick_run, write_pair_files
from tests.slurm.cluster import Cluster, missing_program

HELD_AT = 3
HELD = {"FAULT_HOLD_AT": str(HELD_AT)}
"""The first attempt waits there to be stopped; its last checkpoint is of step 2."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    missing = missing_program()
    if missing is not None:
        end = pytest.fail if os.environ.get("PREFOPT_TEST_SLURM") == "required" else pytest.skip
        end(f"no {missing} here: apt-get install slurm-wlm munge")
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


class Workplace:
    """A folder for runs, with a model and data.

    Attributes:
        root: Of all files.
        runs: Of the runs.
    """

    def __init__(self, root: Path, model: Path, pairs: tuple[Path, Path]) -> None:
        self.root, self.runs = root, root / "runs"
        self.quick = [item for item in quick_run(model, pairs, self.runs) if not item.startswith("run.name")]
        self.cluster = ["cluster=slurm_cpu", "cluster.min_free_gib=0.5", "cluster.preflight=false"]

    def environment(self, **faults: str) -> str:
        """The override of an environment file that sets faults; see tests/site."""
        name = "-".join(f"{key}{value}" for key, value in faults.items()) or "plain"
        path = self.root / f"environment-{name}.sh"
        python_path = f"{SITE}${{PYTHONPATH:+:$PYTHONPATH}}"
        lines = [f"export {key}={value}" for key, value in {"PYTHONPATH": python_path, **faults}.items()]
        path.write_text("".join(f"{line}\n" for line in lines))
        return f"cluster.environment={path}"

    def status(self, *parts: str) -> dict[str, Any]:
        """status.json of a run, empty before it has one."""
        path = self.runs.joinpath(*parts) / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def metrics(self, *parts: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl without what the clock says."""
        lines = self.runs.joinpath(*parts, "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]

    def attempts(self, *parts: str) -> list[dict[str, Any]]:
        """What was decided after each attempt at a run."""
        lines = (self.runs.joinpath(*parts) / "slurm" / "attempts.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def log(self, *parts: str) -> str:
        """All that the jobs of a run or sweep have printed."""
        folder = self.runs.joinpath(*parts) / "slurm"
        return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    root = tmp_path_factory.mktemp("work")
    return Workplace(root, build_tiny_model(root / "model"), write_pair_files(root))


def job_of(output: str, place: int = 0) -> str:
    """The id of a job in what prefopt.submit said."""
    return [line.split()[1] for line in output.splitlines() if line.startswith("submitted ")][place]


def submit(cluster: Cluster, workplace: Workplace, name: str, *overrides: str, **faults: str) -> str:
    """Submits a run and returns its job's id."""
    said = cluster.prefopt(
        "submit", *workplace.quick, f"run.name={name}", *workplace.cluster, workplace.environment(**faults), *overrides
    )
    return job_of(said)


def final_numbers(workplace: Workplace, *parts: str) -> dict[str, Any]:
    """The block `held_out` of a run's report."""
    report: dict[str, Any] = json.loads((workplace.runs.joinpath(*parts) / "report" / "report.json").read_text())
    return dict(report["held_out"])


def wait_for_step(cluster: Cluster, workplace: Workplace, name: str, step: int) -> None:
    cluster.until(lambda: workplace.status(name).get("step", 0) >= step)
