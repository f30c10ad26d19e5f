"""A whole run under ZeRO-3: its reference pass sees the weights, not the parts that a rank holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from prefopt.modeling.reference import SHARD

pytest.importorskip("deepspeed")


def records(cache: Path) -> dict[bytes, np.ndarray]:
    found = {}
    for path in (cache / "reference").rglob(f"*{SHARD}"):
        shard = load_file(path)
        ends = np.cumsum(shard["lengths"])
        for key, start, end in zip(shard["keys"], ends - shard["lengths"], ends, strict=True):
            found[key.tobytes()] = shard["logps"][start:end]
    return found


def run(overrides: list[str], cache: Path, deepspeed: str) -> None:
    launcher = [] if deepspeed == "none" else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command = [sys.executable, *launcher, "-m", "prefopt.train", *overrides, f"deepspeed={deepspeed}"]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    environment |= {"PREFOPT_CACHE": str(cache), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_reference_pass_under_zero_3_sees_whole_weights(overrides, tmp_path):
    for deepspeed in ("none", "zero3"):
        run([*overrides, f"run.name={deepspeed}", "trainer.eval_every=3"], tmp_path / deepspeed, deepspeed)
    whole, parted = (records(tmp_path / deepspeed) for deepspeed in ("none", "zero3"))
    assert len(whole) == len(parted) == 2 * 29
    for key, logps in whole.items():
        np.testing.assert_allclose(parted[key], logps, rtol=1e-5, atol=1e-5)
    folders = {path.parent.name for path in tmp_path.glob(f"*/reference/*/*{SHARD}")}
    assert len(folders) == 1, "the key depends on how weights are held"
    for deepspeed in ("none", "zero3"):
        report = json.loads((tmp_path / "runs" / deepspeed / "report" / "report.json").read_text())
        assert report["throughput"]["reference"]["num_computed"] == 29
        assert report["held_out"]["n"] == 7
