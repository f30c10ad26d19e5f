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


def test_rows_of_other_data_that_cannot_be_used_are_skipped_by_the_remedies_that_the_error_names(run, tmp_path):
    rows = read_rows(STUDY / "held_out.jsonl", 5)
    rows[2]["prompt"] = "And then we said hello. " * 200
    rows[3]["chosen"] = rows[3]["rejected"]
    wanted = [f"data.held_out={write_rows(tmp_path / 'hard.jsonl', rows)}"]
    for remedy in ("data.on_identical=skip", "data.on_long_prompt=skip"):
        with pytest.raises(UserError, match=remedy):
            prefopt.evaluate(run, wanted)
        wanted.append(remedy)
    report = prefopt.evaluate(run, wanted)
    assert report["held_out"]["n"] == 3
    own = read_report(run / "report")["provenance"]["data"]["sha256"]["train"]
    assert report["provenance"]["data"]["sha256"]["train"] == own
    assert prefopt.evaluate(run, [wanted[0], "data.on_bad=skip"])["held_out"] == report["held_out"]


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
    assert f"data.held_out: {file} has changed since" in capsys.readouterr().out
    assert content(run / "report") == before
    (folder,) = run.glob("report-mine-*")
    report = read_report(folder)
    assert report["held_out"]["n"] == 6
    assert report["run"]["data"]["held_out"] == f"{file} (changed since the run was trained)"
    assert "audit" not in report
    # Also if training prompts came into it: they are measured, and said to be those.
    write_rows(file, read_rows(STUDY / "train.jsonl", 3))
    assert prefopt.evaluate(run)["overlap"] == {"prompts": 3, "exact": 3, "near": 0}
    assert content(run / "report") == before


def test_training_prompts_that_are_measured_are_said_to_be_those(run, trained, other, fails):
    train_rows = read_rows(trained / "pairs.jsonl", 22)
    evaluate([f"run={run}", f"data.held_out={trained / 'pairs.jsonl'}"])
    (folder,) = run.glob("report-pairs-*")
    report = read_report(folder)
    # The file is the run's training file, of which two prompts had been set apart.
    assert report["overlap"] == {"prompts": 22, "exact": 20, "near": 0}
    assert report["decision"]["word"] == "undecided"
    severe = [finding for finding in report["verdict"] if finding.get("severe")]
    assert severe[0]["finding"] == "Held-out prompts are also training prompts: 20 word for word."
    assert read_report(run / "report")["overlap"] == {"prompts": 2, "exact": 0, "near": 0}

    asked = [
        {**row, "prompt": [{**turn, "content": f"{turn['content']} please"} for turn in row["prompt"]]}
        for row in train_rows
    ]
    again = prefopt.evaluate(run, [f"data.held_out='{write_rows(other, asked)}'"])
    assert again["overlap"]["exact"] == 0
    assert again["overlap"]["near"] > 0
    assert again["decision"]["word"] == "undecided"
    assert "name the data" in fails(evaluate, [f"run={run}", "data.held_out=null"])


def test_a_run_whose_held_out_prompts_nearly_repeat_those_of_its_training_is_not_one_to_ship(overrides, pair_files):
    train_rows = read_rows(pair_files[0], 22)
    asked = [
        {**row, "prompt": [{**turn, "content": f"{turn['content']} please"} for turn in row["prompt"]]}
        for row in train_rows
    ]
    held_out = write_rows(pair_files[0].parent / "pleading.jsonl", asked)
    train([*overrides, f"data.held_out={held_out}", "trainer.max_steps=1"])
    (root,) = (value.partition("=")[2] for value in overrides if value.startswith("run.root="))
    report = read_report(Path(root) / "test" / "report")
    assert (report["overlap"]["exact"], report["decision"]["word"]) == (0, "undecided")
    assert report["overlap"]["near"] > 0.9 * report["overlap"]["prompts"]
    (finding,) = (each for each in report["verdict"] if "also training prompts" in each["finding"])
    assert (finding["level"], finding["severe"]) == ("warning", True)
    assert finding["finding"] in report["decision"]["reasons"]


def test_a_run_that_is_measured_on_its_own_training_rows_has_an_overlap_of_all_of_them(
    overrides, pair_files, tmp_path
):
    train([*overrides, "trainer.max_steps=1"])
    run = tmp_path / "runs" / "test"
    report = prefopt.evaluate(run, [f"data.held_out={pair_files[0]}"])
    assert report["overlap"] == {"prompts": 22, "exact": 22, "near": 0}
    assert report["run"]["data"]["num_train"] == read_report(run / "report")["run"]["data"]["num_train"] == 22


def test_pairs_of_an_sft_run_whose_prompts_were_trained_are_said_to_be_those(overrides, tmp_path):
    pairs = read_rows(STUDY / "held_out.jsonl", 6)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs[:4]]
    files = write_rows(tmp_path / "sft.jsonl", rows), write_rows(tmp_path / "pairs.jsonl", pairs)
    new = [{"prompt": f"Question {n}", "completion": "yes"} for n in range(50)]
    sft = ["algorithm=sft", f"data.train={files[0]}", f"data.held_out={write_rows(tmp_path / 'new.jsonl', new)}"]
    train(
        [*overrides, *sft, f"evaluation.pairs={files[1]}", "trainer.max_steps=1", "data/gate=off", "data.as_chat=true"]
    )
    report = read_report(tmp_path / "runs" / "test" / "report")
    assert report["overlap"]["exact"] == 4
    assert report["overlap"]["prompts"] == len({str(row["prompt"]) for row in pairs}), "not lost among demonstrations"


def test_an_audit_is_told_only_beside_the_data_that_it_was_of(run, other):
    assert read_report(run / "report")["audit"]["rows"] == 22
    report = prefopt.evaluate(run, [f"data.held_out='{other}'"])
    assert "audit" not in report
    assert "audit" not in report["provenance"]["data"]
    assert prefopt.evaluate(run)["audit"]["rows"] == 22


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


@pytest.fixture
def tested(overrides, tmp_path) -> Path:
    """A run whose settings name test data."""
    file = write_rows(tmp_path / "last.jsonl", read_rows(STUDY / "held_out.jsonl", 12)[7:])
    train([*overrides, f"data.test={file}", "trainer.max_steps=1"])
    return tmp_path / "runs" / "test"


def test_test_data_are_measured_in_a_folder_of_their_own_and_each_look_is_counted(tested, tmp_path, capsys):
    before = content(tested / "report")
    first = prefopt.evaluate(tested, ["split=test"])
    assert content(tested / "report") == before
    assert [path.name for path in tested.glob("report-*")] == ["report-test"]
    assert (first["test"]["looks"], first["test"]["runs"]) == (1, ["test"])
    assert first["held_out"]["n"] == 5
    assert first["run"]["data"]["test"] == str(tmp_path / "last.jsonl")
    assert first["measured_on"] == {"data.test": str(tmp_path / "last.jsonl"), "evaluation.pairs": None}
    page = (tested / "report-test" / "report.md").read_text()
    assert "Test data: looked at for the first time." in page
    assert "of 5 test pairs" in page
    assert "audit" not in first

    assert prefopt.evaluate(tested, ["split=test"])["test"]["looks"] == 2
    shutil.copytree(tested, tested.parent / "second")
    (tested.parent / "second" / "model" / "manifest.json").write_bytes(
        (tested / "model" / "manifest.json").read_bytes() + b"\n"
    )
    last = prefopt.evaluate(tested.parent / "second", ["split=test"])
    assert (last["test"]["looks"], last["test"]["runs"]) == (3, ["test", "second"])
    assert any("becomes held-out data" in each["finding"] and each["severe"] for each in last["verdict"])
    assert last["decision"]["word"] == "undecided"
    assert len((tested.parent / "test_looks.jsonl").read_text().splitlines()) == 3

    capsys.readouterr()
    compare([str(tested), str(tested / "report-test"), "--output", str(tmp_path), "--no-html"])
    said = capsys.readouterr().out
    assert "measured on test data" in said
    assert "1 of 2 rows were measured on other held-out data than #1 (marked *)" in said
    compare([str(tested.parent), "--output", str(tmp_path), "--no-html"])
    assert "report-test" not in capsys.readouterr().out


def test_other_test_data_than_those_of_the_settings_do_not_replace_their_report(tested, other):
    prefopt.evaluate(tested, ["split=test"])
    before = content(tested / "report-test")
    report = prefopt.evaluate(tested, ["split=test", f"data.test='{other}'"])
    assert report["test"]["looks"] == 1, "other data have looks of their own"
    assert content(tested / "report-test") == before
    (folder,) = (path for path in tested.glob("report-test-*"))
    assert read_report(folder)["held_out"]["n"] == 5


def test_a_look_counts_from_before_it_is_measured(tested, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("prefopt.evaluation.run.evaluate_run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prefopt.evaluate(tested, ["split=test"])
    assert len((tested.parent / "test_looks.jsonl").read_text().splitlines()) == 1


def test_test_prompts_that_were_trained_are_said_to_be_those(tested, pair_files, tmp_path):
    copy = tmp_path / "copy.jsonl"
    shutil.copy(pair_files[0], copy)
    report = prefopt.evaluate(tested, ["split=test", f"data.test={copy}"])
    assert report["overlap"]["exact"] == report["overlap"]["prompts"] == 22
    assert report["test"]["held_out"]["exact"] == 0
    assert report["decision"]["word"] == "undecided"


def test_test_prompts_that_are_held_out_prompts_are_said_to_be_those(tested, pair_files, tmp_path):
    rows = [*read_rows(pair_files[1], 2), *read_rows(STUDY / "held_out.jsonl", 20)[15:]]
    report = prefopt.evaluate(tested, ["split=test", f"data.test={write_rows(tmp_path / 'mixed.jsonl', rows)}"])
    assert report["test"]["held_out"] == {"prompts": 7, "exact": 2, "near": 0}
    said = "Test prompts are also held-out prompts, by which this run may have been chosen: 2 word for word."
    assert any(each["finding"] == said and each["severe"] for each in report["verdict"])


def test_test_data_are_measured_by_their_own_command_alone(run, tested, other, pair_files, fails):
    assert "this run has no test data" in fails(evaluate, [f"run={run}", "split=test"])
    assert "data.test=<file>" in fails(evaluate, [f"run={run}", "split=test"])
    assert "Add split=test" in fails(evaluate, [f"run={run}", f"data.test='{other}'"])
    assert "Leave data.held_out or split=test out" in fails(
        evaluate, [f"run={run}", "split=test", f"data.held_out='{other}'"]
    )
    assert "Allowed: held_out, test" in fails(evaluate, [f"run={run}", "split=tset"])
    last = read_config(tested / "config.yaml").data.test
    assert "is named by data.held_out too" in fails(evaluate, [f"run={tested}", f"data.held_out={last}"])
    assert "no such file" in fails(evaluate, [f"run={run}", "split=test", "data.test=nowhere.jsonl"])
    assert "is named by data.train too" in fails(
        evaluate, [f"run={tested}", "split=test", f"data.test={pair_files[0]}"]
    )
    copy = shutil.copy(pair_files[1], tested.parent / "copy.jsonl")
    assert "holds the same as data.held_out" in fails(evaluate, [f"run={tested}", "split=test", f"data.test={copy}"])
    assert not (tested.parent / "test_looks.jsonl").exists()


def test_training_does_not_read_test_data_but_wants_them_to_be_there(overrides, tmp_path, fails):
    missing = tmp_path / "missing.jsonl"
    assert f"{missing}: no such file" in fails(train, [*overrides, f"data.test={missing}"])
    (tmp_path / "last.jsonl").write_text("no row of prefopt\n")
    train([*overrides, f"data.test={tmp_path / 'last.jsonl'}", "trainer.max_steps=1"])
    status = json.loads((tmp_path / "runs" / "test" / "status.json").read_text())
    assert status["state"] == "done"
    train([*overrides, "trainer.max_steps=1"])  # the same run without test data is done already
    assert json.loads((tmp_path / "runs" / "test" / "status.json").read_text()) == status


def test_other_pairs_or_changed_ones_of_an_sft_run_are_other_data_and_test_pairs_are_not_its_held_out_ones(
    overrides, tmp_path, capsys
):
    pairs = write_rows(tmp_path / "pairs.jsonl", read_rows(STUDY / "held_out.jsonl", 4))
    rows = [{"prompt": f"Question {n}", "completion": "yes"} for n in range(14)]
    files = [write_rows(tmp_path / f"{name}.jsonl", part) for name, part in (("sft", rows[:10]), ("new", rows[10:]))]
    sft = ["algorithm=sft", f"data.train={files[0]}", f"data.held_out={files[1]}", f"evaluation.pairs={pairs}"]
    train([*overrides, *sft, "trainer.max_steps=1"])
    run = tmp_path / "runs" / "test"
    before = content(run / "report")
    write_rows(pairs, read_rows(STUDY / "held_out.jsonl", 6))
    evaluate([f"run={run}"])
    assert f"evaluation.pairs: {pairs} has changed since" in capsys.readouterr().out
    assert content(run / "report") == before
    (folder,) = run.glob("report-pairs-*")
    assert read_report(folder)["held_out"]["tuned"]["preference_accuracy"]["n"] == 6

    last = write_rows(tmp_path / "last.jsonl", [{"prompt": "Who?", "completion": "we"}])
    report = prefopt.evaluate(run, ["split=test", f"data.test={last}"])
    assert "preference_accuracy" not in report["held_out"]["tuned"]
    assert "is held-out data and not measured here" in capsys.readouterr().out
    report = prefopt.evaluate(run, ["split=test", f"data.test={last}", f"evaluation.pairs={pairs}"])
    assert report["held_out"]["tuned"]["preference_accuracy"]["n"] == 6
