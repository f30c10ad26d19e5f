"""Searches with real training: a trial that others beat ends early, on one process and on two, and cannot be lost."""

import json

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from prefopt.storage.files import read_lines
from prefopt.submit import main as submit
from prefopt.sweeps import study
from prefopt.sweeps.definition import Search, name_of
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.search import ask, tell
from prefopt.train import main as train
from tests.conftest import quick_run
from tests.unit.test_search import PARAMETERS, make_search

pytestmark = pytest.mark.slow


def status(run):
    return json.loads((run / "status.json").read_text())


def make_beaten_trial(folder, overrides, *, ranks=1):
    """A search whose first two trials were perfect after two steps; returns the third one's task."""
    own = [*overrides, "trainer.eval_every=2"]
    changes = {"num_ranks": ranks, "is_launched": ranks > 1, "min_examples": 8 * ranks, "parameters": PARAMETERS[:1]}
    sweep = make_search(folder, overrides=own, **changes)
    search = Search.read(sweep)
    with study.open_study(sweep.path, search) as opened:
        for index in range(2):
            trial = study.begin_trial(opened, index)
            study.report_value(opened, trial.number, 2.0, 8 * ranks)
    return sweep, ask(sweep, 2)[0]


def state_of(sweep, index):
    with study.open_study(sweep.path, Search.read(sweep)) as opened:
        return study.find_trial(opened, index)


def test_a_trial_that_others_beat_ends_pruned_and_stays_so(overrides, tmp_path, capsys):
    sweep, task = make_beaten_trial(tmp_path / "sweep", overrides)
    train(list(task.overrides))
    assert "pruned at step 2 of 6: its held-out preference_accuracy" in capsys.readouterr().out
    found = status(task.run)
    assert (found["state"], found["step"], found["attempts"]) == ("pruned", 2, 1)
    assert not (task.run / "model").exists()
    assert not (task.run / "report").exists()
    lines = list(read_lines(task.run / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert lines[-1]["split"] == "held_out"
    assert "is pruned" in tell(sweep, 2, has_failed=False)
    trial = state_of(sweep, 2)
    assert trial.state is TrialState.PRUNED
    assert trial.intermediate_values == {8: lines[-1]["preference_accuracy"]}

    train(list(task.overrides))
    said = capsys.readouterr().out
    assert "pruned at step 2 of 6" in said
    assert "run.overwrite=true" in said
    assert status(task.run) == found

    train([*task.overrides, "run.overwrite=true"])
    assert "trial 2 has ended before, so this run is not compared" in capsys.readouterr().out
    assert status(task.run)["state"] == "done"
    assert [line["step"] for line in read_lines(task.run / "metrics.jsonl") if "split" in line] == [2, 4, 6]


def test_all_ranks_end_together_and_an_unreadable_journal_ends_none(overrides, tmp_path, zygote):
    sweep, task = make_beaten_trial(tmp_path / "sweep", overrides, ranks=2)
    zygote.run(list(task.overrides), ranks=2, log=tmp_path / "first.log")
    lines = [line for line in read_lines(sweep.path / study.JOURNAL) if line.get("trial_id") == 2]
    assert sum("intermediate_value" in line for line in lines) == 1, "rank 0 alone reports"
    assert (status(task.run)["state"], status(task.run)["step"]) == ("pruned", 2)
    zygote.run(list(task.overrides), ranks=2, log=tmp_path / "again.log")
    assert (tmp_path / "again.log").read_text().count("pruned at step 2 of 6") == 1

    sweep, task = make_beaten_trial(tmp_path / "damaged", overrides, ranks=2)
    (sweep.path / study.JOURNAL).write_text("no journal\n{}\n")
    zygote.run(list(task.overrides), ranks=2, log=tmp_path / "damaged.log")
    assert status(task.run)["state"] == "done"
    assert (tmp_path / "damaged.log").read_text().count("its journal cannot be used") == 3


def test_a_trial_that_was_stopped_goes_on_as_the_same_trial(overrides, tmp_path, zygote):
    sweep = make_search(tmp_path / "sweep", overrides=[*overrides, "trainer.eval_every=2"], parameters=PARAMETERS[:1])
    task, _ = ask(sweep, 0)
    stopping = ["run.time_limit=1s"]  # less than the least margin: stops after the first step
    zygote.run([*task.overrides, *stopping], ranks=0, log=tmp_path / "log", expect=75)
    assert "is running" in tell(sweep, 0, has_failed=False)
    again, _ = ask(sweep, 0)
    assert again == task
    zygote.run(list(again.overrides), ranks=0, log=tmp_path / "log")
    assert "is complete" in tell(sweep, 0, has_failed=False)
    trial = state_of(sweep, 0)
    assert sorted(trial.intermediate_values) == [8, 16, 24]
    report = json.loads((task.run / "report" / "report.json").read_text())
    assert trial.value == report["held_out"]["tuned"]["preference_accuracy"]["value"]


def test_a_local_search_runs_its_trials_and_takes_more(tiny_model, pair_files, tmp_path, capsys):
    lines = [
        *(line for line in quick_run(tiny_model, pair_files, tmp_path) if not line.startswith(("run.name", "optim"))),
        "trainer.eval_every=2",
        "reference=live",
        "evaluation.num_samples=0",
        "evaluation.neutral_texts=null",
        "algorithm.beta=tag(log, interval(0.01, 0.5))",
        "optim.learning_rate=tag(log, interval(1e-5, 1e-2))",
        "cluster=local",
        "cluster.max_parallel=2",
        "sweep.name=searched",
    ]
    with pytest.raises(SystemExit) as ended:
        submit([*lines, "sweep.search.num_trials=2"])
    assert ended.value.code == 0, capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        submit([*lines, "sweep.search.num_trials=3", "sweep.resume=true"])
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "3/3" not in said
    assert "best so far trial-00" in said

    sweep = SweepFolder(tmp_path / "searched")
    assert sweep.unfinished() == []
    for index in range(3):
        trial, run = state_of(sweep, index), tmp_path / "searched" / name_of(index)
        expected = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[status(run)["state"]]
        assert trial.state is expected
        assert f"algorithm.beta={trial.params['algorithm.beta']}" in (run / "slurm" / "local.log").read_text()
