"""The learning curve of a tiny model: trained, stopped, gone on with, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from prefopt import load_config, train
from prefopt.process.console import build_console
from prefopt.process.errors import UserError
from prefopt.reports.learning_curve import list_lines, render_section
from prefopt.sweeps.learning_curve import SHARES, measure_learning_curve
from tests.conftest import STUDY, read_rows, write_rows


@pytest.fixture
def curve_overrides(tiny_model: Path, tmp_path: Path) -> list[str]:
    """32 training pairs and 12 held-out pairs; a training of 4 steps."""
    pairs = write_rows(tmp_path / "pairs.jsonl", read_rows(STUDY / "train.jsonl", 44))
    return [
        "model=hf",
        f"model.path={tiny_model}",
        "data=files",
        f"data.train={pairs}",
        "data.held_out_fraction=0.27",
        "logger=none",
        "optim.learning_rate=1e-3",
        "trainer.max_steps=2",
        "trainer.per_device_batch_size=2",
        "evaluation.bootstrap_resamples=20",
    ]


def test_it(curve_overrides, tmp_path):
    config = load_config(curve_overrides)
    curve = measure_learning_curve(config, tmp_path / "curve", train, build_console())
    print("\n".join(list_lines(curve)))
    print(json.dumps(curve.to_dict(), indent=1)[:3000])
