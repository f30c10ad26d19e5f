"""A run whose batches are found by trial keeps them when it goes on."""

import json
import shutil
from pathlib import Path

import pytest

from prefopt.prepare import main as prepare
from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import read_lines
from prefopt.train import main as train
from prefopt.training import fit
from prefopt.training.fit import Fit

pytestmark = pytest.mark.slow

AUTO = ["trainer.tokens_per_device=auto", "trainer.gradient_checkpointing=auto", "trainer.log_rows=true"]


@pytest.fixture
def found(monkeypatch):
    """Sets what the next attempt would find."""

    def set_fit(tokens: int, checkpointing: bool = False) -> None:
        monkeypatch.setattr(fit, "fit_on_cpu", lambda work, config: Fit(tokens, checkpointing))

    return set_fit


def rows(folder: Path) -> list[dict]:
    return list(read_lines(folder / "test" / "rows.jsonl"))


def test_a_run_that_goes_on_has_the_batches_that_it_began_with(overrides, tmp_path, found, capsys):
    found(900)
    straight = [*overrides, *AUTO, f"run.root={tmp_path / 'straight'}"]
    train(straight)
    broken = [*overrides, *AUTO]
    train([*broken, "run.name=test", "trainer.save_every=2"])
    run = RunDirectory(tmp_path / "runs" / "test")
    assert run.read_fit() == {"tokens": 900, "checkpointing": False}
    _go_back_to(run, step=2)
    found(2000, checkpointing=True)
    train(broken)
    said = "fit: up to 900 tokens per forward, without gradient checkpointing, as this run began"
    assert said in capsys.readouterr().out
    assert run.read_fit() == {"tokens": 900, "checkpointing": False}
    assert rows(tmp_path / "runs") == rows(tmp_path / "straight")


def _go_back_to(run: RunDirectory, step: int) -> None:
    """As if the run had been killed after a checkpoint."""
    for folder in run.checkpoints.iterdir():
        if folder.name != f"step-{step}":
            shutil.rmtree(folder)
    shutil.rmtree(run.model)
    shutil.rmtree(run.report)
    status = json.loads(run.status.read_text())
    run.status.write_text(json.dumps({**status, "state": "failed"}))


def test_an_overwritten_run_tries_again(overrides, tmp_path, found):
    for tokens in (900, 1200):
        found(tokens)
        train([*overrides, *AUTO, "run.overwrite=true"])
        assert RunDirectory(tmp_path / "runs" / "test").read_fit() == {"tokens": tokens, "checkpointing": False}


def test_checkpointing_that_was_found_to_be_needed_trains_the_same_model(overrides, tmp_path, found, monkeypatch):
    seen = []
    for needed in (False, True):
        found(900, checkpointing=needed)
        name = f"run.name=test{needed}"
        train([*overrides, *AUTO, name])
        seen.append([line["loss"] for line in read_lines(tmp_path / "runs" / f"test{needed}" / "metrics.jsonl")])
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


def test_a_cpu_takes_its_rule_and_says_so(overrides, tmp_path, capsys):
    train([*overrides, *AUTO])
    out = capsys.readouterr().out
    assert out.count("fit: up to ") == 1
    assert "(a rule: cpu cannot be tried)" in out
    assert RunDirectory(tmp_path / "runs" / "test").read_fit() is not None


def test_a_demonstration_run_may_leave_checkpointing_to_a_trial(overrides, tmp_path, pair_files):
    from tests.conftest import STUDY, read_rows, write_rows

    texts = write_rows(tmp_path / "sft.jsonl", read_rows(STUDY / "sft_train.jsonl", 12))
    sft = ["algorithm=sft", f"data.train={texts}", "data.held_out=null", "trainer.gradient_checkpointing=auto"]
    train([*[o for o in overrides if not o.startswith("data.held_out")], *sft])
    assert RunDirectory(tmp_path / "runs" / "test").read_fit() == {"tokens": None, "checkpointing": False}


def test_a_run_that_leaves_nothing_to_a_trial_records_none(overrides, tmp_path):
    train([*overrides, "trainer.max_steps=1"])
    assert RunDirectory(tmp_path / "runs" / "test").read_fit() is None


def test_filling_the_store_tries_nothing(overrides, monkeypatch):
    monkeypatch.setattr(fit, "fit_on_cpu", None)
    prepare([*overrides, *AUTO])
