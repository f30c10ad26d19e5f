"""A run that sees few of many pairs computes few reference log-probs; the oracle is a run with all of them."""

import json
import re
from pathlib import Path

import pytest

from prefopt.prepare import main as prepare
from prefopt.train import main as train
from tests.conftest import STUDY, read_rows, write_rows
from tests.integration.test_resume import deterministic, report_without_times, weights_equal

NUM_PAIRS, NUM_HELD_OUT, NUM_MEASURED = 90, 7, 3


@pytest.fixture
def settings(overrides, tmp_path) -> list[str]:
    """Overrides of a run of a few steps of four pairs, of 90."""
    rows = write_rows(tmp_path / "many.jsonl", read_rows(STUDY / "train.jsonl", NUM_PAIRS))
    measured = [f"evaluation.max_train_examples={NUM_MEASURED}", "evaluation.batch_size=3", "trainer.eval_every=2"]
    fewer = ["evaluation.neutral_texts=null", "evaluation.num_samples=0", "trainer.save_every=1"]
    return [*overrides, f"data.train={rows}", *measured, *fewer]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def check_equal(run: Path, expected: Path) -> None:
    assert deterministic(run) == deterministic(expected)
    assert weights_equal(run / "model", expected / "model")
    assert report_without_times(run) == report_without_times(expected)


def test_a_smoke_run_equals_one_that_finds_everything(settings, tmp_path, monkeypatch, capsys):
    smoke, oracle = tmp_path / "runs" / "smoke", tmp_path / "runs" / "oracle"
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "whole"))
    prepare([*settings, "trainer.max_steps=2", "run.name=oracle"])
    assert read(oracle / "work.json")["reference"]["num_computed"] == NUM_PAIRS + NUM_HELD_OUT
    train([*settings, "trainer.max_steps=2", "run.name=oracle"])
    assert not re.search("[1-9][0-9]* computed", capsys.readouterr().out.partition("prepared:")[2])

    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "parts"))
    train([*settings, "trainer.max_steps=2", "run.name=smoke"])
    said = capsys.readouterr().out
    check_equal(smoke, oracle)
    needed = read(smoke / "provenance.json")["reference"]
    num_needed = needed["train"].pop("num_needed")
    assert 8 <= num_needed <= 8 + NUM_MEASURED
    assert needed == {"train": {"num_rows": NUM_PAIRS}, "eval": {"num_needed": NUM_HELD_OUT, "num_rows": NUM_HELD_OUT}}
    assert f"reference: train: this run needs {num_needed} of {NUM_PAIRS} rows; 0 of {num_needed} pairs from" in said
    assert read(smoke / "work.json")["reference"]["num_computed"] <= 3 * num_needed + NUM_HELD_OUT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "lengths"),
    [
        ([], (2, 4)),
        (["trainer.batch_order=length_grouped"], (2, 4)),
        (["trainer.tokens_per_device=800"], (2,)),  # its plan is of the whole run, which cannot be made longer
    ],
)
def test_a_run_that_is_made_longer_computes_the_rest_and_equals_one_that_finds_everything(
    settings, tmp_path, monkeypatch, capsys, how, lengths
):
    for name in ("oracle", "parts"):
        monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / name))
        if name == "oracle":
            prepare([*settings, "run.name=prepared"])
        for num_steps in lengths:
            capsys.readouterr()
            train([*settings, *how, f"run.name={name}", f"trainer.max_steps={num_steps}"])
    num_needed, num_stored = map(int, re.findall("needs ([0-9]+) of .* rows; ([0-9]+) of", capsys.readouterr().out)[0])
    assert num_needed < NUM_PAIRS
    assert bool(num_stored) == (len(lengths) > 1)
    check_equal(tmp_path / "runs" / "parts", tmp_path / "runs" / "oracle")
