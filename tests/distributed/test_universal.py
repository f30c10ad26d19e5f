"""A run under ZeRO goes on with another number of ranks: the losses of the run that was not interrupted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.distributed.universal import make_universal
from prefopt.process.errors import UserError
from tests.conftest import REPOSITORY, STUDY, read_rows, write_rows
from tests.distributed.train_steps import BATCH, CASES, SAVED, STEPS

pytest.importorskip("deepspeed")

LOSS_LIMIT, NORM_LIMIT = 1e-5, 1e-4
"""float32: gradients are summed in another order; measured were 1.5e-6 and 3e-6."""
STARTED = 2
"""Ranks of the run that was interrupted."""


@pytest.fixture(scope="module")
def work(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where 2 ranks trained every case to its end, and 1 and 3 ranks went on from the middle; a launch for each."""
    folder = tmp_path_factory.mktemp("universal")
    rows = write_rows(folder / "rows.jsonl", read_rows(STUDY / "train.jsonl", STEPS * BATCH))
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    environment |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    for ranks in (STARTED, 1, 3):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        arguments = [str(tiny_model), str(rows), str(folder), *([str(STARTED)] if ranks != STARTED else [])]
        finished = subprocess.run(
            [*launch, "-m", "tests.distributed.train_steps", *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert finished.returncode == 0, finished.stderr[-5000:]
    return folder


def found(work: Path, ranks: int, name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((work / f"{ranks}.json").read_text())[name]
    return results


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("stage", "method"), CASES)
class TestAnotherNumberOfRanks:
    def test_deepspeed_loaded_the_universal_form(self, work, stage, method, ranks):
        began, went_on = (found(work, number, f"{stage}-{method}") for number in (STARTED, ranks))
        for seen, number in ((began, STARTED), (went_on, ranks)):
            assert (seen["engine"], seen["stage"], seen["ranks"]) == ("DeepSpeedEngine", stage, number)
        assert went_on["loads_universal"]
        assert not began["loads_universal"]

    def test_the_optimizer_is_as_it_was_saved(self, work, stage, method, ranks):
        began, went_on = (found(work, number, f"{stage}-{method}") for number in (STARTED, ranks))
        for key in ("exp_avg", "exp_avg_sq"):
            assert began[key] > 0
            assert went_on[key] == pytest.approx(began[key], rel=1e-5)
        assert went_on["weight_decays"] == began["weight_decays"] == ([0.1, 0.0] if method == "full" else [0.1])
        assert set(went_on["steps"]) == set(began["steps"]) == {STEPS}

    def test_losses_and_gradient_norms_are_those_of_the_run_that_went_through(self, work, stage, method, ranks):
        began, went_on = (found(work, number, f"{stage}-{method}") for number in (STARTED, ranks))
        assert len(went_on["losses"]) == STEPS - SAVED
        assert went_on["losses"] == pytest.approx(began["losses"], rel=0, abs=LOSS_LIMIT)
        assert went_on["grad_norms"] == pytest.approx(began["grad_norms"], rel=NORM_LIMIT)
        assert went_on["learning_rates"] == began["learning_rates"]


@pytest.mark.parametrize("case", ["2-full-forgotten", "3-full-unmended"])
def test_what_is_not_restored_shows_in_the_last_loss(work, case):
    expected = found(work, STARTED, case.rpartition("-")[0])["losses"]
    losses = found(work, 1, case)["losses"]
    assert losses[0] == pytest.approx(expected[0], rel=0, abs=LOSS_LIMIT)  # the weights are right
    assert abs(losses[-1] - expected[-1]) > 10 * LOSS_LIMIT


def change_optimizer(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the state of the inner optimizer in the files of all ranks."""
    for path in checkpoint.glob("global_step*/*_optim_states.pt"):
        content = torch.load(path, weights_only=False)
        state = content["optimizer_state_dict"]
        change(state.get("base_optimizer_state") or state["optimizer_state_dict"])
        torch.save(content, path)
    return checkpoint


def test_the_folder_is_made_anew_and_in_silence(work, tmp_path, capfd):
    folder = tmp_path / "resharded-2"
    (folder / "global_step9_universal").mkdir(parents=True)
    (tmp_path / "resharded-2.partial" / "global_step2_universal" / "tmp").mkdir(parents=True)
    make_universal(work / f"2-full-{STARTED}" / f"checkpoint-{SAVED}", folder)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["resharded-2"]
    names = {"global_step2_universal", "latest_universal", "trainer_state.json", "scheduler.pt"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "latest_universal").read_text() == "global_step2_universal"


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_that_is_not_adam_is_refused(work, tmp_path, stage):
    def forget(adam):
        for values in adam["state"].values():
            del values["exp_avg"]

    copied = shutil.copytree(work / f"{stage}-full-{STARTED}" / f"checkpoint-{SAVED}", tmp_path / "step-2")
    with pytest.raises(UserError, match="its optimizer keeps no 'exp_avg'"):
        make_universal(change_optimizer(copied, forget), tmp_path / "resharded-2")
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_learning_rates_of_groups_that_stage_3_would_mix_are_refused(work, tmp_path):
    def part(adam):
        adam["param_groups"][1]["lr"] *= 2

    copied = shutil.copytree(work / f"3-full-{STARTED}" / f"checkpoint-{SAVED}", tmp_path / "step-2")
    with pytest.raises(UserError, match="learning rates of their own"):
        make_universal(change_optimizer(copied, part), tmp_path / "resharded-2")
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
