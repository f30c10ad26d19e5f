"""Writes what `prefopt.submit` would give to sbatch: a script per shipped profile, and both jobs of a sweep.

python slurm/examples/render.py
"""

from pathlib import Path

from prefopt.cluster.script import render
from prefopt.config.cluster import SUBMIT, ClusterConfig
from prefopt.process.paths import shipped
from prefopt.sweeps.jobs import Job, Task

FOLDER = Path(__file__).parent
PROJECT = Path("/shared/project")
RUNS = PROJECT / "runs"
PYTHON = ".venv/bin/python"
EXPERIMENT = "+experiment=dpo_brand_voice"
COMMAND = "python slurm/examples/render.py"
SWEPT = "slurm_1x1"
"""The profile of the sweep."""


def main() -> None:
    for name, script in scripts().items():
        (FOLDER / name).write_text(script, encoding="utf-8")
        print(f"slurm/examples/{name}")


def scripts() -> dict[str, str]:
    """Every example by its file name."""
    profiles = sorted(path.stem for path in (shipped("conf") / "cluster").glob("*.yaml") if path.stem != "local")
    run = RUNS / "voice"
    job = Job("voice", run, "prefopt.train", {0: Task(run, [EXPERIMENT, f"run.root={RUNS}", "run.name=voice"])})
    single = {f"{profile}.sh": _render(job, _cluster(profile)) for profile in profiles}
    reference, points = _sweep()
    cluster = _cluster(SWEPT)
    return {**single, "sweep_reference.sh": _render(reference, cluster), "sweep_points.sh": _render(points, cluster)}


def _sweep() -> tuple[Job, Job]:
    """What points share, and after it the points."""
    folder = RUNS / "voice-beta_lr"
    where = [f"run.root={folder}", f"logger.group={folder.name}"]
    run = folder / "reference"
    task = Task(run, [EXPERIMENT, "algorithm.beta=0.05", *where, "run.name=reference"])
    reference = Job(f"{folder.name}-reference", folder, "prefopt.prepare", {0: task})
    tasks = {number: Task(folder / f"point-{number}", []) for number in range(6)}  # a task's lines are in its file
    points = Job(folder.name, folder, "prefopt.train", tasks, is_array=True, parallel=4, after=["1234"])
    return reference, points


def _cluster(profile: str) -> ClusterConfig:
    cluster: ClusterConfig = SUBMIT.compose([f"cluster={profile}"]).build().cluster
    return cluster


def _render(job: Job, cluster: ClusterConfig) -> str:
    return render(job, cluster, python=PYTHON, workdir=PROJECT)


if __name__ == "__main__":
    main()
