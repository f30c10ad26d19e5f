"""A search before it is submitted, and what is submitted when it is resumed."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("optuna")

from prefopt.cluster.attempts import decide_next
from prefopt.cluster.planning import plan_submission
from prefopt.cluster.script import render
from prefopt.config.cluster import SUBMIT
from prefopt.evaluation.metrics import COMPARED, HELD_OUT, NUMBER, OF_PAIRS, TUNED, Better, Metric
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory, State
from prefopt.submit import split
from prefopt.sweeps.definition import Search
from prefopt.sweeps.folder import SweepFolder
from tests.unit.test_search import end_run

EXPERIMENT = ["+experiment=dpo_brand_voice"]
SMALL = [*EXPERIMENT, "sweep.search.num_trials=3", "algorithm.beta=interval(0.01,0.5)"]


@pytest.fixture
def plan(tmp_path):
    """Plans a submission whose runs lie in a folder of this test."""

    def run(*overrides):
        lines = ["cluster=slurm_cpu", f"run.root={tmp_path / 'runs'}", *overrides]
        own, runs = split(lines)
        config = SUBMIT.compose(own).build()
        return plan_submission(config, runs, None), config.cluster

    return run


def search_of(submission):
    submission.write("the command")
    return Search.read(SweepFolder(submission.folder))


def test_the_shipped_search_is_a_reference_and_an_array_of_twenty_trials(plan):
    submission, _ = plan(*EXPERIMENT, "sweep=optuna_dpo", "cluster.max_parallel=4")
    reference, trials = submission.jobs
    assert reference.module == "prefopt.prepare"
    assert (trials.is_search, trials.waits, trials.parallel, sorted(trials.tasks)) == (True, True, 4, list(range(20)))
    assert trials.tasks[7].run == submission.folder / "trial-007"
    search = search_of(submission)
    assert [parameter.key for parameter in search.parameters] == [
        "algorithm.beta",
        "optim.learning_rate",
        "algorithm.loss_type",
    ]
    assert search.min_examples == 15 * 16
    points = json.loads((submission.folder / "sweep.json").read_text())["points"]
    assert [point["name"] for point in points][:2] == ["trial-000", "trial-001"]


def test_a_rung_is_after_the_evaluations_of_the_largest_batch(plan):
    sizes = ["trainer.per_device_batch_size=choice(16,4)", "trainer.eval_every=choice(5,10)"]
    search = search_of(plan(*SMALL, *sizes, "sweep.search.min_evaluations=2", "cluster.ranks_per_node=2")[0])
    assert search.min_examples == 2 * 10 * 16 * 2
    assert (search.num_ranks, search.is_launched) == (2, True)


def test_trials_that_use_other_data_or_models_share_no_reference(plan):
    submission, _ = plan(*SMALL, "data.max_length=choice(512,1024)")
    assert [job.is_search for job in submission.jobs] == [True]
    submission, _ = plan(*EXPERIMENT, "sweep.search.num_trials=1", "algorithm.beta=interval(0.01,0.5)")
    assert len(submission.jobs) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.bta=interval(1,2)"], "algorithm.bta: no such setting. Did you mean algorithm.beta?"),
        (["optim.warmup_ratio=interval(0,1)"], "optim.warmup_ratio=1.0: optim.warmup_ratio: must be in"),
        (["algorithm.loss_type=choice(sigmoid,sigmid)"], "unknown loss 'sigmid'"),
        (["trainer.eval_every=null"], "set trainer.eval_every, or set sweep.search.prune=false"),
        (["logger.project=choice(a,b)"], "what differs changes no result"),
        (["run.name=choice(a,b)"], "run.name with a sweep"),
        (["sweep.search.metric=acuracy"], "Allowed here: preference_accuracy, mean_margin, reward_accuracy"),
        (["sweep.search.metric=loss"], "metric=loss: no held-out metric that the reports"),
        (["sweep.search.metric=mean_margin"], "measures it at the end alone"),
        (["sweep.search.metric=reward_margin"], "scales with algorithm.beta"),
        (["sweep.search.maximise=false"], "set sweep.search.maximise=true"),
        (["data.held_out=null", "run.seed=range(0,3)"], "different held-out data"),
        (["data.held_out=null", "data.held_out_fraction=0", "trainer.eval_every=null"], "since nothing is held out"),
        (["trainer.max_steps=15"], "could never end a trial: the first comparison is after 240 examples"),
        (["trainer.tokens_per_device=4096"], "steps differ in it"),
        (["sweep.points=[['run.seed=1']]"], "a search draws its points"),
        (["chain=sft_then_dpo"], "chain and sweep"),
        (["sweep.resume=true"], "there is no sweep"),
        (["data.train=missing.jsonl"], "missing.jsonl"),
        (["sweep.search.sampler_seed=-1"], "must be >= 0"),
        (["sweep.constraint.kl_per_tokn=1"], "Did you mean kl_per_token?"),
        (["sweep.constraint.preference_accuracy=0.9"], "no metric of reports that is better the lower it is"),
        (["sweep.constraint.kl_per_token=low"], "must be a number >= 0"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_it_is_submitted(plan, tmp_path, overrides, message):
    with pytest.raises(UserError) as refused:
        plan(*SMALL, *overrides)
    assert message in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_without_pruning_a_metric_of_the_report_alone_will_do(plan):
    off = ["sweep.search.prune=false", "trainer.eval_every=null"]
    search = search_of(plan(*SMALL, "sweep.search.metric=mean_margin", *off)[0])
    assert (search.metric, search.logged, search.prune) == ("mean_margin", None, False)


@pytest.mark.parametrize("search", [True, False])
def test_the_plan_of_a_sweep_records_its_constraint(plan, search):
    lines = SMALL if search else [*EXPERIMENT, "algorithm.beta=0.1,0.3"]
    submission, _ = plan(*lines, "sweep.constraint.kl_per_token=0.5", "sweep.constraint.neutral_ratio=null")
    submission.write("the command")
    assert SweepFolder(submission.folder).read()["constraint"] == {"kl_per_token": 0.5}


def test_a_search_is_not_resumed_with_another_constraint(plan):
    search_of(plan(*SMALL)[0])
    with pytest.raises(UserError, match="there is no sweep"):
        plan(*SMALL, "sweep.constraint.kl_per_token=0.5", "sweep.resume=true")


def test_a_metric_may_be_named_as_the_evaluations_on_the_way_name_it(plan):
    search = search_of(plan(*SMALL, "sweep.search.metric=rewards/accuracies")[0])
    assert (search.metric, search.logged) == ("reward_accuracy", "rewards/accuracies")


@pytest.mark.parametrize("maximise", ["true", "false"])
def test_a_metric_that_is_best_near_zero_has_no_end_to_search(plan, monkeypatch, maximise):
    metric = Metric(
        "bias", "B", "b", "B", NUMBER, Better.near_zero, path=(HELD_OUT, TUNED, "bias"), rows=OF_PAIRS, of_pairs=True
    )
    monkeypatch.setattr("prefopt.sweeps.search_plan.COMPARED", [*COMPARED, metric])
    lines = ["sweep.search.metric=bias", f"sweep.search.maximise={maximise}", "sweep.search.prune=false"]
    with pytest.raises(UserError, match=r"metric=bias: nearer to 0 is better, but a search maximises or minimises\."):
        plan(*SMALL, *lines)


def test_sft_searches_its_loss(plan):
    lines = ["+experiment=sft_brand_voice", "sweep.search.num_trials=3", "optim.learning_rate=interval(1e-5,1e-4)"]
    search = search_of(plan(*lines, "sweep.search.metric=loss", "sweep.search.maximise=false")[0])
    assert (search.metric, search.logged, search.maximise) == ("loss", "loss", False)


def test_optuna_is_asked_for_by_the_name_of_its_extra(plan, monkeypatch):
    monkeypatch.setattr("prefopt.sweeps.search_plan.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"prefopt\[search\]"):
        plan(*SMALL)


def test_a_resumed_search_submits_what_is_not_over_and_takes_more_trials(plan):
    submission, _ = plan(*SMALL)
    folder = SweepFolder(submission.folder)
    rungs = search_of(submission).min_examples
    for index, state in enumerate((State.pruned, State.diverged, State.failed)):
        end_run(folder, index, state)
    with pytest.raises(UserError, match="submitted before"):
        plan(*SMALL)

    resumed, _ = plan(*SMALL, "sweep.resume=true")
    assert resumed.folder == submission.folder
    assert sorted(resumed.jobs[-1].tasks) == [2]
    assert [point.index for point in folder.unfinished()] == [2]

    end_run(folder, 2, State.done)
    RunDirectory(folder.path / "trial-002").model.mkdir()
    assert "all 3 trials are over" in plan(*SMALL, "sweep.resume=true")[0].answer
    more = ["sweep.search.num_trials=5", "sweep.resume=true", "cluster.ranks_per_node=2"]
    grown, _ = plan(*SMALL, *more)
    assert sorted(grown.jobs[-1].tasks) == [3, 4]
    search = search_of(grown)
    assert (search.num_trials, search.min_examples) == (5, rungs)
    with pytest.raises(UserError, match="can be raised, not lowered"):
        plan(*SMALL, "sweep.search.num_trials=4", "sweep.resume=true")
    with pytest.raises(UserError, match="there is no sweep"):
        plan(*SMALL, "sweep.search.reduction_factor=2", "sweep.resume=true")
    with pytest.raises(UserError, match="other points"):
        plan(*SMALL, "sweep.search.reduction_factor=2", f"sweep.name={folder.name}", "sweep.resume=true")


def test_only_a_search_asks_and_tells_in_its_script(plan, tmp_path):
    submission, cluster = plan(*SMALL)
    script = render(submission.jobs[-1], cluster)
    ask, read, tell = (
        script.index(f"prefopt.sweeps.search ask {submission.folder}"),
        script.index("mapfile"),
        script.index(f"prefopt.sweeps.search tell {submission.folder}"),
    )
    assert ask < read < script.index("prefopt.cluster.attempts") < tell < script.index("case $next in")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)

    grid, cluster = plan(*EXPERIMENT, "algorithm.beta=0.1,0.2")
    assert "prefopt.sweeps" not in render(grid.jobs[-1], cluster)
    assert "prefopt.sweeps" not in render(submission.jobs[0], cluster)


def test_planning_loads_neither_torch_nor_optuna(tmp_path):
    lines = [*SMALL, "cluster=slurm_cpu", f"run.root={tmp_path}", "submit.dry_run=true"]
    program = (
        "import sys; from prefopt.submit import main; main(sys.argv[1:]); print({'torch','optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, *lines], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_pruned_run_is_not_queued_again():
    attempt = decide_next({"state": "pruned", "step": 15, "message": "x"}, [], "1", 0, 9, 3)
    assert (attempt.next, attempt.why) == ("done", "pruned")
