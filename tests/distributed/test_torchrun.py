"""A command as in the README through torchrun itself; the other tests of many ranks start them in another way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SITE, STUDY, read_rows, write_rows
from tests.distributed import outcomes

pytest.importorskip("deepspeed")

DEADLINE_S = 600.0
HELD_AT = 3
LAUNCH = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "prefopt.train",
]


def write_head(folder: Path, name: str, number: int) -> Path:
    """The first rows of a file of the shipped study."""
    return write_rows(folder / name, read_rows(STUDY / name, number))


def start(command: list[str], log: Path, **faults: str) -> subprocess.Popen:
    """On a machine without a compiler, and where nothing was compiled before; `faults` are those of tests/site."""
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    environment |= {"CXX": "/nowhere/c++", "CC": "/nowhere/cc", "TORCH_EXTENSIONS_DIR": str(log.with_name("compiled"))}
    python_path = filter(None, [str(SITE), os.environ.get("PYTHONPATH")])
    environment |= {"PYTHONPATH": os.pathsep.join(python_path), **faults}
    with log.open("a") as output:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@pytest.mark.smoke
def test_after_sigterm_to_torchrun_the_ranks_have_saved_and_the_same_command_goes_on_to_its_report(tmp_path):
    run, log = tmp_path / "runs" / "voice", tmp_path / "log"
    command = [
        *LAUNCH,
        "+experiment=dpo_brand_voice",
        "deepspeed=zero3",
        "trainer.max_steps=10",
        "trainer.batch_size=8",
        "trainer.per_device_batch_size=2",
        "trainer.log_every=1",
        "trainer.eval_every=5",
        "trainer.save_every=100",
        "trainer.log_rows=true",
        "logger=none",
        f"data.train={write_head(tmp_path, 'train.jsonl', 90)}",
        f"data.held_out={write_head(tmp_path, 'held_out.jsonl', 6)}",
        f"run.root={tmp_path / 'runs'}",
        "run.name=voice",
        *outcomes.SHORT_REPORT,
    ]
    process = start(command, log, FAULT_HOLD_AT=str(HELD_AT))
    wait_for_step(2, run, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_S) != 0
    assert status(run)["state"] == "preempted", log.read_text()
    assert log.read_text().count("stopped on request (SIGTERM); the same command goes on") == 1
    (checkpoint,) = (run / "checkpoints").iterdir()  # there was no other save than this one
    assert checkpoint.name == f"step-{HELD_AT}"
    assert len(list(checkpoint.glob(f"global_step{HELD_AT}/*_optim_states.pt"))) == 2

    assert start(command, log).wait(timeout=DEADLINE_S) == 0, log.read_text()
    assert status(run) == {"state": "done", "step": 10, "attempts": 2, "message": "", "records": 12}
    assert f"resume: from step {HELD_AT} " in log.read_text()
    assert [record["pairs"] for record in outcomes.training(run)] == [8 * step for step in range(1, 11)]
    rows = [row for record in outcomes.rows(run) for row in record["rows"]]
    assert len(rows) == len(set(rows)) == 80
    assert json.loads((run / "report" / "report.json").read_text())["held_out"]["n"] == 6
    assert log.read_text().count("Report: ") == 1  # rank 0 alone talks
    assert not (tmp_path / "compiled").exists()


def wait_for_step(step: int, run: Path, process: subprocess.Popen, log: Path) -> None:
    """Returns when the log line of an optimizer step is there."""
    deadline = time.monotonic() + DEADLINE_S
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
