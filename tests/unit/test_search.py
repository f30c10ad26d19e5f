"""A search's trials: asked for once, told once, whatever is killed and whoever asks at the same time."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna")

from optuna.trial import TrialState  # noqa: E402

from prefopt.config.load import load_config, to_yaml  # noqa: E402
from prefopt.config.step_size import StepSize  # noqa: E402
from prefopt.runs.directory import RunDirectory, State  # noqa: E402
from prefopt.runs.find import CONSTRAINT  # noqa: E402
from prefopt.runs.lock import RunLock  # noqa: E402
from prefopt.storage.files import read_lines, write_json, write_text  # noqa: E402
from prefopt.sweeps import study  # noqa: E402
from prefopt.sweeps.definition import TRIAL, Search, name_of  # noqa: E402
from prefopt.sweeps.folder import SEARCH, SweepFolder  # noqa: E402
from prefopt.sweeps.search import ask, main, tell  # noqa: E402
from prefopt.sweeps.space import Parameter  # noqa: E402
from prefopt.training.pruning import PrunedError, PruningCallback  # noqa: E402

BASE = ["model=hf", "model.path=x", "data=files", "data.train=y.jsonl", "trainer.eval_every=2"]
PARAMETERS = [
    Parameter("algorithm.beta", low=0.01, high=0.5, log=True),
    Parameter("trainer.per_device_batch_size", low=2, high=8, step=2),
    Parameter("algorithm.loss_type", choices=["sigmoid", "ipo", "[sigmoid,sft]"]),
]
SETTINGS = Search(
    parameters=PARAMETERS,
    overrides=BASE,
    config_dir=None,
    num_ranks=1,
    is_launched=False,
    num_trials=40,
    metric="preference_accuracy",
    logged="preference_accuracy",
    maximise=True,
    sampler_seed=0,
    num_startup_trials=3,
    prune=True,
    min_examples=16,
    reduction_factor=3,
)


def make_search(path, constraint=None, **changes):
    search = replace(SETTINGS, **changes)
    folder = SweepFolder(path)
    folder.write(search.points(), "digest", **{SEARCH: search.to_record(), CONSTRAINT: constraint or {}})
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_search(tmp_path / "sweep")


def trials(folder):
    with study.open_study(folder.path, Search.read(folder)) as opened:
        return opened.get_trials()


def end_run(folder, index, state, value=None, *, decision="undecided", drift=None):
    """Leaves what a run leaves that ended in this state.

    Args:
        folder: Of the sweep.
        index: Of the task.
        state: Of status.json.
        value: Accuracy in the report; None: no report.
        decision: Of the report.
        drift: The block of this name in the report.
    """
    run = RunDirectory(folder.path / name_of(index))
    run.report.mkdir(parents=True, exist_ok=True)
    run.set_state(state)
    write_text(run.config, "")
    if value is not None:
        held_out = {"tuned": {"preference_accuracy": {"value": value}}}
        decided = {"word": decision, "reasons": [], "would_decide": []}
        report = {"held_out": held_out, "decision": decided, "drift": drift or {}}
        write_json(run.report / "report.json", report)


def test_a_search_reads_back_as_it_was_written(folder):
    assert Search.read(folder) == SETTINGS


def test_asking_again_gives_the_same_trial(folder):
    first, words = ask(folder, 3)
    again, _ = ask(folder, 3)
    assert first == again
    assert len(trials(folder)) == 1
    assert first.run == folder.path / "trial-003"
    assert f"run.root={folder.path}" in first.overrides
    assert {"run.name=trial-003", "logger.group=sweep"} <= set(first.overrides)
    drawn = trials(folder)[0].params
    assert f"algorithm.beta={drawn['algorithm.beta']!r}" in first.overrides
    assert f"trainer.per_device_batch_size={drawn['trainer.per_device_batch_size']}" in first.overrides
    assert drawn["trainer.per_device_batch_size"] in (2, 4, 6, 8)
    assert f"algorithm.beta={drawn['algorithm.beta']}" in words
    place = json.loads((first.run / "slurm" / TRIAL).read_text())
    assert place == {"sweep": str(folder.path), "trial": 0}


def test_a_trial_whose_drawing_was_killed_keeps_what_was_drawn(folder):
    search = Search.read(folder)
    with study.open_study(folder.path, search) as opened:
        trial = study.begin_trial(opened, 0)
        study.draw(opened, trial, search.parameters[:1], search)
        opened.ask()  # killed before it knew its task
    (beta,) = trials(folder)[0].params.values()
    task, _ = ask(folder, 0)
    assert f"algorithm.beta={beta}" in task.overrides
    assert [len(trial.params) for trial in trials(folder)] == [3, 0]


def test_the_same_seed_draws_the_same_trials_and_every_trial_another_point(tmp_path):
    def points(name, **changes):
        folder = make_search(tmp_path / name, **changes)
        for index in range(5):
            ask(folder, index)
            end_run(folder, index, State.done, index / 5)
            tell(folder, index, has_failed=False)
        return [trial.params for trial in trials(folder)]

    first = points("a")
    assert len({point["algorithm.beta"] for point in first}) == 5
    assert points("b") == first
    assert points("c", sampler_seed=1) != first


def test_workers_at_the_same_time_get_distinct_trials(folder):
    asking = "import sys; from prefopt.sweeps.search import main\nfor i in sys.argv[2:]: main(['ask', sys.argv[1], i])"
    workers = [
        subprocess.Popen([sys.executable, "-c", asking, folder.path, *map(str, range(first, 40, 4))])
        for first in range(4)
    ]
    assert [worker.wait(600) for worker in workers] == [0] * 4
    found = trials(folder)
    assert sorted(trial.user_attrs[study.TASK] for trial in found) == list(range(40))
    assert len({trial.params["algorithm.beta"] for trial in found}) == 40
    for trial in found:
        run = folder.path / name_of(trial.user_attrs[study.TASK])
        assert json.loads((run / "slurm" / TRIAL).read_text())["trial"] == trial.number
        path = folder.slurm / "train.tasks" / str(trial.user_attrs[study.TASK])
        written = path.read_text().splitlines()
        assert written[0] == str(run)
        assert f"algorithm.beta={trial.params['algorithm.beta']}" in written
    assert not list(folder.path.glob(f"{study.JOURNAL}?*")), "a lock was left"


@pytest.mark.parametrize("torn", [b'{"op_code":4,"wor', b"x" * 10_000])
def test_a_line_that_was_cut_does_not_make_the_journal_unreadable(folder, torn):
    ask(folder, 0)
    with (folder.path / study.JOURNAL).open("ab") as file:
        file.write(torn)
    ask(folder, 1)
    assert len(trials(folder)) == 2
    assert all("op_code" in line for line in read_lines(folder.path / study.JOURNAL))
    assert (folder.path / study.JOURNAL).read_bytes().endswith(b"}\n")


def test_a_journal_of_one_cut_line_begins_anew(folder):
    (folder.path / study.JOURNAL).write_bytes(b'{"op_code":0')
    ask(folder, 0)
    assert len(trials(folder)) == 1


@pytest.mark.parametrize(
    ("state", "value", "has_failed", "expected"),
    [
        (State.done, 0.75, False, TrialState.COMPLETE),
        (State.done, 0.75, True, TrialState.COMPLETE),
        (State.done, None, False, TrialState.FAIL),
        (State.pruned, None, False, TrialState.PRUNED),
        (State.diverged, None, False, TrialState.FAIL),
        (State.failed, None, True, TrialState.FAIL),
        (State.failed, None, False, TrialState.RUNNING),
        (State.preempted, None, False, TrialState.RUNNING),
        (State.running, None, True, TrialState.FAIL),
        (State.running, None, False, TrialState.RUNNING),
    ],
)
def test_what_is_told_follows_from_the_state_of_the_run(folder, state, value, has_failed, expected):
    ask(folder, 0)
    end_run(folder, 0, state, value)
    for _ in range(2):
        words = tell(folder, 0, has_failed=has_failed)
        (trial,) = trials(folder)
        assert trial.state is expected
        assert trial.value == (value if expected is TrialState.COMPLETE else None)
        assert f"trial 0 is {expected.name.lower()}" in words


def test_a_second_start_of_a_run_that_is_at_work_fails_no_trial(folder):
    task, _ = ask(folder, 0)
    end_run(folder, 0, State.running)
    with RunLock(task.run):
        tell(folder, 0, has_failed=True)
        assert trials(folder)[0].state is TrialState.RUNNING
    tell(folder, 0, has_failed=True)
    assert trials(folder)[0].state is TrialState.FAIL


def test_the_word_of_an_end_that_a_kill_swallowed_is_made_up_for(folder):
    states = [State.done, State.pruned, State.preempted]
    for index in range(3):
        ask(folder, index)
    for index, state in enumerate(states):
        end_run(folder, index, state, 0.5)
    ask(folder, 3)
    states = [trial.state for trial in trials(folder)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING]


def test_the_best_is_the_best_in_the_direction_of_the_search(tmp_path):
    for name, maximise, best in (("up", True, 1), ("down", False, 0)):
        folder = make_search(tmp_path / name, maximise=maximise)
        for index, value in enumerate((0.25, 0.75)):
            ask(folder, index)
            end_run(folder, index, State.done, value)
        words = tell(folder, 0, has_failed=False)
        assert words.startswith("trial-000: trial 0 is complete, preference_accuracy 0.25 (undecided); best so far ")
        assert f"best so far trial-00{best}, preference_accuracy" in words


KL = {"kl_per_token": 1.0}


@pytest.mark.parametrize(
    ("ruined", "why"),
    [
        ({"decision": "do_not_ship"}, "cannot be the best: do not ship"),
        ({"drift": {"kl_per_token": {"value": 1.5}}}, "cannot be the best: kl_per_token above 1"),
        ({"drift": {"kl_per_token": {"value": None}}}, "cannot be the best: kl_per_token above 1"),
    ],
)
def test_a_ruined_trial_is_never_the_best_whatever_its_metric(tmp_path, ruined, why):
    folder = make_search(tmp_path / "sweep", KL)
    near = {"drift": {"kl_per_token": {"value": 0.3}}}
    for index, (value, rest) in enumerate([(0.75, near), (1.0, {**near, **ruined})]):
        ask(folder, index)
        end_run(folder, index, State.done, value, **rest)
    words = tell(folder, 1, has_failed=False)
    assert why in words
    assert "best so far trial-000, preference_accuracy 0.75 (undecided)" in words
    with study.open_study(folder.path, Search.read(folder)) as opened:
        assert study.find_best(opened).number == 0
        assert opened.best_trial.number == 0, "Optuna's own commands agree"
        assert opened.trials[1].state is TrialState.COMPLETE, "so that the sampler learns from it"
        assert max(opened.trials[1].system_attrs["constraints"]) > 0


def test_a_search_of_ruined_trials_alone_has_no_best(tmp_path):
    folder = make_search(tmp_path / "sweep")
    ask(folder, 0)
    end_run(folder, 0, State.done, 1.0, decision="do_not_ship")
    assert tell(folder, 0, has_failed=False).endswith("; no trial yet that may be the best")


def test_a_limit_that_a_report_cannot_be_checked_by_is_said_and_breaks_nothing(tmp_path):
    folder = make_search(tmp_path / "sweep", {"neutral_ratio": 1.5, **KL})
    ask(folder, 0)
    end_run(folder, 0, State.done, 0.8, drift={"perplexity": {"ratio": {"value": 1.2}}})
    words = tell(folder, 0, has_failed=False)
    assert "preference_accuracy 0.8 (undecided), not measured and so not limited: kl_per_token; best so far" in words


@pytest.mark.filterwarnings("error")
def test_the_sampler_keeps_away_from_where_trials_break_a_limit(tmp_path):
    """The best metric lies where the model is ruined: above a beta of 0.1."""
    parameters = [Parameter("algorithm.beta", low=0.01, high=1.0, log=True)]

    def num_ruined(name, limit):
        folder = make_search(tmp_path / name, parameters=parameters, prune=False, num_startup_trials=6)
        search = Search.read(folder)
        with study.open_study(folder.path, search) as opened:
            for index in range(24):
                beta = study.draw(opened, study.begin_trial(opened, index), parameters, search)["algorithm.beta"]
                attributes = {study.EXCESS: {"limit": beta - limit}}
                study.end_trial(opened, study.find_trial(opened, index), TrialState.COMPLETE, beta, attributes)
            return sum(trial.params["algorithm.beta"] > 0.1 for trial in opened.trials[10:])

    assert num_ruined("limited", 0.1) + 3 < num_ruined("free", 10.0)


def test_a_failed_run_goes_on_at_its_point_and_one_that_could_not_begin_gets_another(folder):
    first, _ = ask(folder, 0)
    end_run(folder, 0, State.failed)
    tell(folder, 0, has_failed=True)
    again, _ = ask(folder, 0)
    assert again == first
    assert [trial.state for trial in trials(folder)] == [TrialState.FAIL, TrialState.RUNNING]
    assert json.loads((again.run / "slurm" / TRIAL).read_text())["trial"] == 1

    first, _ = ask(folder, 1)
    tell(folder, 1, has_failed=True)
    assert ask(folder, 1)[0] != first


def test_a_point_that_cannot_run_is_told_as_failed_and_named(tmp_path, fails):
    folder = make_search(tmp_path / "sweep", parameters=[Parameter("algorithm.beta", low=-0.5, high=-0.1)])
    message = fails(main, ["ask", str(folder.path), "0"])
    assert "which cannot run: algorithm.beta: must be > 0" in message
    assert [trial.state for trial in trials(folder)] == [TrialState.FAIL]
    assert not (folder.slurm / "train.tasks" / "0").exists()


def test_a_pruned_run_is_overwritten_and_not_continued(tmp_path):
    config = load_config([*BASE, f"run.root={tmp_path}", "run.name=x", "run.overwrite=true"])
    run = RunDirectory.of(config)
    run.path.mkdir()
    write_text(run.config, to_yaml(config))
    run.set_state(State.preempted)
    assert run.is_overwriting(config)
    assert run.why_pruned() is None
    run.set_state(State.pruned, message="pruned at step 2")
    assert not run.is_overwriting(config)
    assert run.why_pruned() == "pruned at step 2"


def test_there_is_no_trial_beyond_the_last_and_no_search_without_one(folder, tmp_path, fails):
    assert "none of index 40" in fails(main, ["ask", str(folder.path), "40"])
    assert "no sweep here" in fails(main, ["ask", str(tmp_path), "0"])
    SweepFolder(tmp_path / "grid").write([], "digest")
    assert "holds no search" in fails(main, ["ask", str(tmp_path / "grid"), "0"])


def test_a_journal_that_cannot_be_read_is_an_error_for_ask(folder, fails):
    (folder.path / study.JOURNAL).write_text("no journal\n{}\n")
    assert "optuna.journal: cannot be used" in fails(main, ["ask", str(folder.path), "0"])


def report(folder, index, examples, value):
    search = Search.read(folder)
    with study.open_study(folder.path, search) as opened:
        trial = study.find_trial(opened, index) or study.begin_trial(opened, index)
        return study.report_value(opened, trial.number, value, examples)


def test_a_trial_is_compared_at_the_same_number_of_examples_whatever_its_batch_size(folder):
    assert report(folder, 0, 16, 0.9) is False
    assert report(folder, 1, 4, 0.1) is False, "before the first rung"
    assert report(folder, 1, 8, 0.2) is False
    assert report(folder, 1, 16, 0.5) is True
    assert report(folder, 2, 32, 0.95) is False, "a large batch may come late to a rung"
    assert report(folder, 3, 16, float("nan")) is True


@pytest.mark.filterwarnings("error")
def test_a_value_that_an_earlier_attempt_reported_is_not_judged_twice(folder):
    report(folder, 0, 16, 0.9)
    report(folder, 1, 16, 0.95)
    assert report(folder, 0, 16, 0.1) is False
    assert trials(folder)[0].intermediate_values == {16: 0.9}


def test_a_trial_that_has_ended_takes_no_values(folder):
    ask(folder, 0)
    end_run(folder, 0, State.pruned)
    tell(folder, 0, has_failed=False)
    assert report(folder, 0, 16, 0.9) is None


SIZE = StepSize(per_device=4, accumulation=1, num_ranks=1)


def evaluate(callback, step, value, max_steps=8):
    state = SimpleNamespace(global_step=step, max_steps=max_steps)
    callback.on_evaluate(None, state, None, {"eval_preference_accuracy": value})


def test_training_is_pruned_when_others_were_better_but_not_at_its_last_step(folder):
    for index in (0, 1):
        ask(folder, index)
        report(folder, index, 16, 0.9)
    task, _ = ask(folder, 2)
    callback = PruningCallback(RunDirectory(task.run), SIZE)
    evaluate(callback, 2, 0.1)
    evaluate(callback, 4, 0.1, max_steps=4)
    assert trials(folder)[2].intermediate_values == {8: 0.1, 16: 0.1}

    task, _ = ask(folder, 3)
    with pytest.raises(PrunedError, match="pruned at step 4 of 8: its held-out preference_accuracy") as pruned:
        evaluate(PruningCallback(RunDirectory(task.run), SIZE), 4, 0.1)
    assert pruned.value.step == 4


def test_every_rank_does_what_rank_0_was_told(folder, monkeypatch):
    callback = PruningCallback(RunDirectory(ask(folder, 0)[0].run), SIZE)
    monkeypatch.setattr("prefopt.training.pruning.on_main", lambda report: "as rank 0 says")
    with pytest.raises(PrunedError, match="as rank 0 says"):
        evaluate(callback, 2, 0.9)
    assert trials(folder)[0].intermediate_values == {}


@pytest.mark.parametrize("damage", ["journal", "sweep.json", "trial.json", "metric", "optuna"])
def test_what_goes_wrong_with_the_journal_does_not_end_training(folder, caplog, monkeypatch, damage):
    task, _ = ask(folder, 0)
    if damage == "journal":
        (folder.path / study.JOURNAL).write_text("no journal\n{}\n")
    elif damage == "trial.json":
        (task.run / "slurm" / TRIAL).write_text("{")
    elif damage == "sweep.json":
        (folder.path / "sweep.json").unlink()
    elif damage == "metric":
        folder = make_search(folder.path, logged="rewards/margins")
    else:
        monkeypatch.setitem(sys.modules, "prefopt.sweeps.study", None)
        monkeypatch.delattr("prefopt.sweeps.study")
    evaluate(PruningCallback(RunDirectory(task.run), SIZE), 4, 0.1)
    assert "its journal cannot be used, so this run goes on unpruned" in caplog.text
