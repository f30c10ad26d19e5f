"""Shared prompts under DeepSpeed ZeRO with two processes: the losses and gradient norms of plain TRL."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.distributed.compare_engines import CASES, ENGINES

pytest.importorskip("deepspeed")

Results = dict[str, dict[str, Any]]
LIMIT = 1e-5
"""float32: the order of sums in attention and in the weights' gradients differs."""


@pytest.fixture(scope="module")
def results(tiny_model: Path, pair_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every case saw, from one launch: starting processes is what takes the time."""
    result = tmp_path_factory.mktemp("zero") / "result.json"
    arguments = [str(tiny_model), str(pair_files[0]), str(result)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    finished = subprocess.run(
        [*launch, "-m", "tests.distributed.compare_engines", *arguments],
        cwd=REPOSITORY,
        env=environment | {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-5000:]
    found: Results = json.loads(result.read_text())
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("stage", "method"), CASES)
def test_deepspeed_is_in_use(results, stage, method, engine):
    found = results[f"{stage}-{method}-{engine}"]
    assert found["is_deepspeed_enabled"]
    assert found["distributed_type"] == "DistributedType.DEEPSPEED"
    assert found["num_ranks"] == 2
    assert found["stage"] == stage
    assert found["num_partitioned"] == (found["num_parameters"] if stage == 3 else 0)


@pytest.mark.parametrize(("stage", "method"), CASES)
def test_losses_and_gradient_norms_are_those_of_plain_trl(results, stage, method):
    plain, shared = (results[f"{stage}-{method}-{engine}"] for engine in ENGINES)
    assert len(plain["losses"]) == 3
    for name in ("losses", "grad_norms"):
        assert shared[name] == pytest.approx(plain[name], rel=LIMIT)
    assert shared["margins"] == pytest.approx(plain["margins"], abs=LIMIT)
    assert abs(plain["margins"][-1]) > 1e-3


@pytest.mark.parametrize(("stage", "method"), CASES)
def test_one_row_is_computed_where_plain_trl_computes_two_per_pair(results, stage, method):
    assert results[f"{stage}-{method}-trl"]["rows_seen"] == [4]
    assert results[f"{stage}-{method}-shared_prefix"]["rows_seen"] == [1]
