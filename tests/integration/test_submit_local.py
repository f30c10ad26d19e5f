"""Sweeps on this machine, through `prefopt.submit` and `prefopt.train -m`: whole runs in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.train import main as train
from tests.conftest import quick_run, write_rows

pytestmark = pytest.mark.slow

DEADLINE_S = 600.0
SHORT = ["trainer.max_steps=2", "trainer.save_every=1", "evaluation.num_samples=0", "evaluation.neutral_texts=null"]


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "my runs"


@pytest.fixture
def quick(tiny_model, pair_files, runs, tmp_path, monkeypatch) -> list[str]:
    """Overrides of a run that takes a second besides its imports, and a store that nobody else has filled."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    named = [line for line in quick_run(tiny_model, pair_files, runs) if not line.startswith(("run.name", "run.root"))]
    return [*named, f"run.root='{runs}'", *SHORT]


def start(module: str, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_points_share_their_reference_and_one_that_fails_leaves_the_others_alone(quick, runs, tmp_path):
    broken = write_rows(tmp_path / "broken.jsonl", [{"prompt": "p", "chosen": "c"}])
    points = f"[['algorithm.beta=0.05'],['data.train=\"{broken}\"'],['algorithm.beta=0.3']]"
    sweep_of_three = [f"sweep.points={points}", "sweep.name=three", "cluster.max_parallel=3", "logger=wandb"]
    submitted = start("prefopt.submit", "cluster=local", *quick, *sweep_of_three)
    said, _ = submitted.communicate(timeout=DEADLINE_S)
    assert submitted.returncode == 1, said

    sweep = runs / "three"
    names = [point["name"] for point in read(sweep / "sweep.json")["points"]]
    states = {name: read(sweep / name / "status.json")["state"] for name in (names[0], names[2], "reference")}
    assert states == {"beta-0.05": "done", "beta-0.3": "done", "reference": "done"}
    assert read(sweep / "reference" / "work.json")["reference"]["num_computed"] == 22 + 7
    for name in (names[0], names[2]):
        reference = read(sweep / name / "work.json")["reference"]
        assert (reference["hit_rate"], reference["num_computed"]) == (1.0, 0)
        assert (sweep / name / "report" / "report.json").exists()
    log = sweep / names[1] / "slurm" / "local.log"
    assert f"failed: {sweep / names[1]}, see {log}" in said
    assert "broken.jsonl:1" in log.read_text()
    lines = said.splitlines()
    assert lines[0] == f"3 runs in {sweep}"
    assert lines[-1].split(" ", 3)[-1].endswith(f"prefopt compare '{sweep}'")
    ended = [number for number, line in enumerate(lines) if "  beta-0." in line and "  done  " in line]
    assert len(ended) == 2
    for number in ended:
        assert "Tuned prefers the chosen answer on" in lines[number + 1]
    assert not list((sweep / "reference").glob("wandb*")), "nothing that asks to be uploaded"
    assert lines.index(next(line for line in lines if "  reference  done" in line)) < ended[0]


def test_ctrl_c_lets_the_runs_of_a_sweep_save_and_starts_no_other(quick, runs):
    long = ["trainer.max_steps=100000", "trainer.save_every=100000", "reference=live", "sweep.name=two"]
    submitted = start("prefopt.submit", "cluster=local", *quick, *long, "algorithm.beta=0.1,0.3")
    first, second = (runs / "two" / f"beta-{beta}" for beta in (0.1, 0.3))
    deadline = time.monotonic() + DEADLINE_S
    while not (first / "metrics.jsonl").exists():
        assert submitted.poll() is None, submitted.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    submitted.send_signal(signal.SIGINT)
    said, _ = submitted.communicate(timeout=DEADLINE_S)
    assert submitted.returncode == 75, said
    assert "stopped on request; the same command goes on (a sweep: with sweep.resume=true)" in said
    status = read(first / "status.json")
    assert (status["state"], status["attempts"]) == ("preempted", 1)
    assert (first / "checkpoints" / f"step-{status['step']}").is_dir()
    assert not second.exists()


def test_train_with_m_runs_every_point_here(quick, runs):
    multirun = start("prefopt.train", "-m", *quick, "reference=live", "run.seed=1,2", "cluster.max_parallel=2")
    said, _ = multirun.communicate(timeout=DEADLINE_S)
    assert multirun.returncode == 0, said
    (sweep,) = runs.iterdir()
    assert {run.name for run in sweep.iterdir() if run.is_dir()} == {"seed-1", "seed-2"}
    assert all(read(sweep / name / "status.json")["state"] == "done" for name in ("seed-1", "seed-2"))


def test_m_under_torchrun_is_refused_because_every_rank_would_run_the_sweep(quick, fails, monkeypatch, runs):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "set cluster.ranks_per_node" in fails(train, ["-m", *quick, "run.seed=1,2"])
    assert not runs.exists()


def test_without_slurm_nothing_is_written_and_the_exit_code_says_so(quick, runs, tmp_path):
    submitted = start("prefopt.submit", "cluster=slurm_cpu", *quick, "run.seed=1,2", PATH=str(tmp_path))
    said, _ = submitted.communicate(timeout=DEADLINE_S)
    assert submitted.returncode == 2
    assert said.startswith("error: sbatch: not found on this machine, so nothing was submitted.")
    assert not runs.exists()


def test_a_submission_answers_without_loading_torch(quick):
    script = "import sys; from prefopt.submit import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", script, "cluster=slurm_2x8", *quick, "run.seed=1,2", "submit.dry_run=true"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
