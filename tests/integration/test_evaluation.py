"""A finished run measured later: on its own data its report is rebuilt, on other data it gets one more."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import prefopt
from prefopt.compare import main as compare
from prefopt.comparison.places import find_places
from prefopt.comparison.read import RunReader
from prefopt.evaluate import main as evaluate
from prefopt.evaluation.run import evaluate_run
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunTakenOverError
from prefopt.runs.lock import RunLock
from prefopt.runs.settings import read_config
from prefopt.train import main as train
from tests.conftest import STUDY, quick_run, read_rows, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A run whose held-out pairs were set apart from its 22 rows, and their file."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = write_rows(folder / "pairs.jsonl", read_rows(STUDY / "train.jsonl", 22))
    train([*quick_run(tiny_model, (rows, rows), folder / "runs"), "data.held_out=null", "trainer.max_steps=2"])
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "runs" / "test", tmp_path / "test")


@pytest.fixture
def other(tmp_path) -> Path:
    return write_rows(tmp_path / "other pairs.jsonl", read_rows(STUDY / "held_out.jsonl", 5))


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_on_other_data_stands_beside_the_runs_own_and_says_what_was_measured(run, other, capsys):
    before = content(run / "report")
    evaluate([f"run={run}", f"data.held_out='{other}'"])
    assert content(run / "report") == before
    (folder,) = run.glob("report-*")
    assert folder.name.startswith("report-other-pairs-")
    assert f"this one goes to {folder}" in capsys.readouterr().out
    own, later = read_report(run / "report"), read_report(folder)
    assert later["held_out"]["n"] == 5
    assert later["run"]["data"]["held_out"] == str(other)
    assert later["provenance"]["data"]["sha256"]["held_out"] != own["provenance"]["data"]["sha256"]["held_out"]
    # Rows that the run had set apart never became rows of its training.
    assert later["run"]["data"]["num_train"] == own["run"]["data"]["num_train"] == 20
    assert later["provenance"]["data"]["sha256"]["train"] == own["provenance"]["data"]["sha256"]["train"]

    evaluate([f"run={run}", f"data.held_out='{other}'"])
    assert list(run.glob("report-*")) == [folder], "the same rows measured again go to the same folder"


def test_a_comparison_says_which_row_was_measured_on_other_data(run, other, tmp_path, capsys):
    evaluate([f"run={run}", f"data.held_out='{other}'"])
    (folder,) = run.glob("report-*")
    capsys.readouterr()
    compare([str(run), str(folder), "--output", str(tmp_path), "--no-html"])
    said = capsys.readouterr().out
    assert "1 of 2 rows were measured on other held-out data than #1 (marked *)" in said
    assert "no further seed" not in said
    own, later = RunReader().read(find_places([run, folder]))
    assert (own.name, later.name) == ("test", f"test/{folder.name}")
    assert later.settings["data.held_out"] == str(other)
    assert own.settings["data.held_out"] is None
    assert {later.metrics["preference_accuracy"].n, own.metrics["preference_accuracy"].n} == {5, 2}


def test_other_settings_on_the_same_rows_rebuild_the_report(run):
    evaluate([f"run={run}", "evaluation.num_samples=2"])
    assert not list(run.glob("report-*"))
    assert read_report(run / "report")["drift"]["kl_per_token"]["n"] == 2


def test_held_out_data_that_have_changed_since_do_not_replace_the_report(overrides, tmp_path, capsys):
    file = write_rows(tmp_path / "mine.jsonl", read_rows(STUDY / "held_out.jsonl", 4))
    train([*overrides, f"data.held_out={file}", "trainer.max_steps=1"])
    run = tmp_path / "runs" / "test"
    before = content(run / "report")
    write_rows(file, read_rows(STUDY / "held_out.jsonl", 6))
    evaluate([f"run={run}"])
    assert content(run / "report") == before
    (folder,) = run.glob("report-mine-*")
    assert read_report(folder)["held_out"]["n"] == 6


def test_prompts_of_the_training_are_not_measured_as_held_out(run, trained, fails):
    message = fails(evaluate, [f"run={run}", f"data.held_out={trained / 'pairs.jsonl'}"])
    assert "20 training prompts are among them" in message
    assert not list(run.glob("report-*"))
    assert "name the data" in fails(evaluate, [f"run={run}", "data.held_out=null"])


def test_a_kl_per_response_counts_the_answers_that_were_cut(run):
    drift = read_report(run / "report")["drift"]
    kl, finished = drift["kl_per_response"], drift["finished"]["tuned"]
    assert kl["num_cut"] == round((1 - finished["value"]) * finished["n"]) > 0
    assert kl["cut_at"] == 6
    assert f"KL/response, {kl['num_cut']} cut" in (run / "report" / "report.md").read_text()


def test_a_report_has_a_date(run):
    assert read_report(run / "report")["date"][:2] == "20"
    assert read_report(run / "report")["date"][:10] in (run / "report" / "report.html").read_text()


@pytest.fixture
def while_measuring(monkeypatch):
    """Lets something happen when the models of an evaluation are measured, and no report is written yet."""

    def happens(what):
        def measure(config, run, *given):
            found = evaluate_run(config, run, *given)
            what(run)
            return found

        monkeypatch.setattr("prefopt.evaluation.run.evaluate_run", measure)

    return happens


def test_a_run_is_not_measured_while_another_process_uses_it(run, fails):
    before = content(run / "report")
    with RunLock(run):
        assert f"in use by process {os.getpid()}" in fails(evaluate, [f"run={run}"])
    assert content(run / "report") == before
    evaluate([f"run={run}", "evaluation.num_samples=2"])
    evaluate([f"run={run}"])


def test_a_run_is_neither_trained_nor_measured_twice_while_it_is_measured(run, while_measuring):
    def replace_it(measured):
        config = read_config(run / "config.yaml")
        config.run.root, config.run.name, config.run.overwrite = str(run.parent), run.name, True
        for command in (lambda: prefopt.train(config), lambda: prefopt.evaluate(run)):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
                command()

    while_measuring(replace_it)
    model = content(run / "model")
    evaluate([f"run={run}", "evaluation.num_samples=2"])
    assert content(run / "model") == model
    assert read_report(run / "report")["drift"]["response_length"]["tuned"]["n"] == 2
    assert not (run.parent / ".test.lock").exists()


def test_what_was_measured_of_a_run_that_another_process_took_over_is_not_reported(run, while_measuring):
    before = content(run / "report")
    while_measuring(lambda measured: setattr(measured.lock, "lost_to", "another process"))
    with pytest.raises(RunTakenOverError, match="taken over by another process"):
        prefopt.evaluate(run)
    assert content(run / "report") == before


def test_a_run_that_cannot_be_locked_is_refused_before_it_is_measured(run, while_measuring, monkeypatch, fails):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("prefopt.runs.lock.create", refuse)
    while_measuring(lambda measured: pytest.fail("it was measured"))
    assert f"{run.parent}: cannot be written (Permission denied)" in fails(evaluate, [f"run={run}"])
