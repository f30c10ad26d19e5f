"""What runs share: a reference pass that was killed goes on, and runs beside each other use one store."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.process.errors import UserError
from prefopt.train import main as train
from tests.integration.test_resume import deterministic, report_without_times, weights_equal

pytestmark = pytest.mark.slow

KEYS_THAT_DIFFER = ("name", "learning_rate", "beta")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PREFOPT_CACHE", str(folder))
    return folder


def work_of(run: Path) -> dict:
    return json.loads((run / "work.json").read_text())


def read_report(run: Path) -> dict:
    return json.loads((run / "report" / "report.json").read_text())


DYING = """
import os, signal, sys
from prefopt.models import reference
from prefopt.evaluation.scoring import Scorer
from prefopt.train import main
reference.FLUSH_S = -1.0
whole = Scorer.iterate_pairs
def dying(*args, **kwargs):
    for number, batch in enumerate(whole(*args, **kwargs)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
Scorer.iterate_pairs = dying
main(sys.argv[1:])
"""


def test_a_run_killed_in_its_reference_pass_goes_on_from_what_was_stored(overrides, tmp_path, own_cache, monkeypatch):
    argv = [*overrides, "evaluation.batch_size=4", "trainer.eval_every=3"]
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "other"))
    train([*argv, "run.name=whole"])
    monkeypatch.setenv("PREFOPT_CACHE", str(own_cache))
    command = [sys.executable, "-c", DYING, *argv, "run.name=broken"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    broken, whole = tmp_path / "runs" / "broken", tmp_path / "runs" / "whole"
    assert not list((broken / "checkpoints").iterdir())
    train([*argv, "run.name=broken"])
    reference = work_of(broken)["reference"]
    assert reference["num_stored"] == 12, "three batches of four"
    assert reference["num_stored"] + reference["num_computed"] == reference["num_pairs"] == 29
    assert deterministic(broken) == deterministic(whole)
    assert weights_equal(broken / "model", whole / "model")
    assert report_without_times(broken) == report_without_times(whole)


def test_another_member_of_a_sweep_computes_no_reference(overrides, tmp_path, own_cache):
    train([*overrides, "run.name=first", "trainer.eval_every=3"])
    train([*overrides, "run.name=second", "trainer.eval_every=3", "algorithm.beta=0.5", "optim.learning_rate=1e-4"])
    first, second = (work_of(tmp_path / "runs" / name)["reference"] for name in ("first", "second"))
    assert (first["hit_rate"], first["num_computed"]) == (0.0, 29)
    assert (second["hit_rate"], second["num_computed"]) == (1.0, 0)
    assert second["saved_s"] == pytest.approx(first["computed_s"], rel=1e-6)
    assert read_report(tmp_path / "runs" / "second")["throughput"]["reference"]["hit_rate"] == 1.0


def test_two_runs_at_the_same_time_end_with_one_sound_store(overrides, tmp_path, own_cache):
    command = [sys.executable, "-m", "prefopt.train", *overrides, "evaluation.batch_size=1"]
    processes = [
        subprocess.Popen([*command, f"run.name={name}"], stdout=subprocess.DEVNULL) for name in ("one", "two")
    ]
    assert [process.wait(600) for process in processes] == [0, 0]
    assert not list(own_cache.rglob("*.partial")) + list(own_cache.rglob("*.damaged"))
    assert len(list((own_cache / "reference").iterdir())) == 1
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    assert deterministic(one) == deterministic(two)
    train([*overrides, "run.name=three"])
    assert work_of(tmp_path / "runs" / "three")["reference"]["hit_rate"] == 1.0


@pytest.mark.parametrize("how", [["engine=trl"], ["reference=live"], ["engine=trl", "reference=live"]])
def test_the_report_does_not_depend_on_engine_or_store(overrides, tmp_path, how):
    train([*overrides, "run.name=fast"])
    train([*overrides, "run.name=other", *how])
    fast, other = (read_report(tmp_path / "runs" / name)["held_out"] for name in ("fast", "other"))
    for model in ("base", "tuned"):
        for name, entry in fast[model].items():
            assert other[model][name]["value"] == pytest.approx(entry["value"], rel=1e-4, abs=1e-4)


def test_a_folder_that_cannot_be_written_stops_the_run_with_a_reason(overrides, tmp_path, fails):
    (tmp_path / "file").write_text("")
    message = fails(train, [*overrides, f"reference.path={tmp_path / 'file'}"])
    assert "cannot be stored here" in message
    assert "reference=live" in message
    assert not (tmp_path / "runs" / "test").exists()


def test_a_store_that_fails_after_training_does_not_cost_the_report(overrides, tmp_path, monkeypatch, capsys):
    from prefopt.evaluation import measure

    class Full:
        def complete(self, *_, **__):
            raise UserError("no space")

    monkeypatch.setattr(measure, "open_store", lambda config: Full())
    train(overrides)
    assert "goes on without the store. no space" in capsys.readouterr().out
    assert read_report(tmp_path / "runs" / "test")["held_out"]["n"] == 7
