"""What only a CUDA device can show."""

import json

import pytest
import torch

from prefopt.train import main as train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("changes", [[], ["trainer.precision=bf16"], ["peft=lora", "trainer.precision=bf16"]])
def test_a_run_on_cuda_leaves_a_complete_report(overrides, tmp_path, changes):
    train([*overrides, *changes, "trainer.eval_every=3"])
    report = json.loads((tmp_path / "runs" / "test" / "report" / "report.json").read_text())
    assert report["held_out"]["n"] == 7
    assert "cpu" not in report["provenance"]["hardware"].lower()
