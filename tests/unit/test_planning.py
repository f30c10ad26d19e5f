"""What a submission consists of, and everything that is refused before anything is written."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.cluster import queued
from prefopt.cluster.planning import Submission, plan_submission
from prefopt.cluster.slurm import QueuedJob
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import load_config, to_yaml
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.runs.directory import RunDirectory
from prefopt.submit import split
from prefopt.sweeps.jobs import Job
from prefopt.sweeps.points import plan_points, read_axes

ALONE = Launch(1, False)
Plan = Callable[..., Submission]


def files_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


class Place:
    """A folder with data, a model, and what Slurm says of jobs.

    Attributes:
        runs: run.root.
        base: Overrides of a run.
        queue: The states of jobs by id.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, root / "my runs"
        (root / "model").mkdir()
        (root / "train.jsonl").write_text("{}\n")
        (root / "held_out.jsonl").write_text("{}\n")
        (root / "environment.sh").write_text("")
        files = [f"data.train='{root}/train.jsonl'", f"data.held_out='{root}/held_out.jsonl'"]
        self.base = ["model=hf", f"model.path='{root}/model'", "data=files", *files, f"run.root='{self.runs}'"]
        self.queue: dict[str, str] = {}

    def find_queued(self, jobs: list[str]) -> list[QueuedJob]:
        return [
            QueuedJob(task, state, "")
            for task, state in self.queue.items()
            if task.partition("_")[0] in map(str, jobs)
        ]

    def plan(self, *overrides: str, config_dir: str | None = None) -> Submission:
        """Plans, and makes sure that nothing was written."""
        cluster = [] if any(line.startswith("cluster=") for line in overrides) else ["cluster=slurm_cpu"]
        own, runs = split([*self.base, *cluster, *overrides])
        before = files_below(self.root)
        try:
            return plan_submission(SUBMIT.compose(own, config_dir).build(), runs, config_dir)
        finally:
            assert files_below(self.root) == before, "planning writes nothing"

    def refusal(self, *overrides: str, **rest) -> str:
        with pytest.raises(UserError) as error:
            self.plan(*overrides, **rest)
        return str(error.value)

    def leave_run(self, name: str, state: str, *overrides: str, has_model: bool = True) -> Path:
        """What a run of that name leaves."""
        config = load_config([*self.base, f"run.name={name}", *overrides], launch=ALONE)
        run = RunDirectory.of(config)
        run.path.mkdir(parents=True)
        run.config.write_text(to_yaml(config))
        run.status.write_text(json.dumps({"state": state, "step": 6, "attempts": 1, "message": ""}))
        if has_model:
            run.model.mkdir()
        return run.path

    def leave_jobs(self, folder: Path, *numbers: str) -> None:
        """What submitting jobs leaves."""
        (folder / "slurm").mkdir(parents=True, exist_ok=True)
        (folder / "slurm" / "jobs.jsonl").write_text("".join(json.dumps({"job": n}) + "\n" for n in numbers))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    place = Place(tmp_path)
    monkeypatch.setattr(queued, "find_queued", place.find_queued)
    monkeypatch.chdir(tmp_path)
    return place


def configs(job: Job, launch: Launch = ALONE) -> list:
    """The configurations that a job's tasks will compose on their nodes."""
    return [load_config(strip(task.overrides), launch=launch) for task in job.tasks.values()]


def strip(overrides) -> list[str]:
    lines = list(overrides)
    return lines[: lines.index("--config-dir")] if "--config-dir" in lines else lines


def test_a_run_is_one_job_that_finds_its_folder_from_anywhere(place, monkeypatch):
    submission = place.plan("run.name=voice", "run.root=relative/runs", "algorithm.beta=0.3")
    (job,) = submission.jobs
    expected = place.root / "relative" / "runs" / "voice"
    assert (submission.folder, job.folder, job.name, job.module) == (expected, expected, "voice", "prefopt.train")
    assert (job.is_array, job.tasks[0].run, job.after) == (False, expected, [])
    monkeypatch.chdir("/")
    (config,) = configs(job)
    assert RunDirectory.of(config).path == expected
    assert config.algorithm.beta == 0.3
    assert not submission.is_sweep


def test_a_run_without_a_name_keeps_the_one_that_its_settings_give_it(place):
    (job,) = place.plan("algorithm.beta=0.3").jobs
    (config,) = configs(job)
    assert config.run.name == job.name == load_config([*place.base, "algorithm.beta=0.3"]).run.name


def test_the_users_config_folder_goes_along_by_its_absolute_path(place):
    (place.root / "mine" / "experiment").mkdir(parents=True)
    (place.root / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nalgorithm:\n  beta: 0.7\n")
    (place.root / "mine" / "cluster").mkdir()
    (place.root / "mine" / "cluster" / "ours.yaml").write_text("defaults: [slurm_cpu, _self_]\npartition: gpu\n")
    (job,) = place.plan("+experiment=own", "cluster=ours", config_dir="mine").jobs
    assert list(job.tasks[0].overrides)[-2:] == ["--config-dir", str(place.root / "mine")]
    sweep = place.plan("+experiment=own", "cluster=ours", "run.seed=1,2", config_dir="mine")
    for each in sweep.jobs:
        assert all(list(task.overrides)[-1] == str(place.root / "mine") for task in each.tasks.values())


def test_a_run_that_is_done_is_not_submitted_again_but_where_its_report_is_is_said(place):
    path = place.leave_run("voice", "done")
    submission = place.plan("run.name=voice")
    assert submission.jobs == []
    assert submission.answer == f"{path}: this run is done. Report: {path / 'report' / 'report.html'}"
    assert place.plan("run.name=voice", "run.overwrite=true").jobs
    shown = place.plan("run.name=voice", "submit.dry_run=true")
    assert (shown.answer, [job.folder for job in shown.jobs]) == (submission.answer, [path])


def leave_digests(run: Path, train: Path) -> None:
    """What a run notes of its training file."""
    digest = hashlib.sha256(hashlib.sha256(train.read_bytes()).digest()).hexdigest()
    (run / "provenance.json").write_text(json.dumps({"data": {"files": {"train": digest, "held_out": None}}}))


def test_of_what_is_done_it_is_said_that_its_data_have_changed_since(place):
    train, sweep = place.root / "train.jsonl", ("run.seed=1,2", "sweep.name=seeds")
    submission = place.plan(*sweep)
    submission.write("the command")
    for task in submission.jobs[-1].tasks.values():
        run = place.leave_run(task.run.name, "done", f"run.root='{task.run.parent}'")
        leave_digests(run, train)
    leave_digests(place.leave_run("voice", "done"), train)
    again = (["run.name=voice"], [*sweep, "sweep.resume=true"])
    assert all("changed" not in place.plan(*command).answer for command in again)
    train.write_text("{} \n")
    of_run, of_sweep = (place.plan(*command).answer.splitlines() for command in again)
    changed = f"data.train: {train} has changed since"
    assert of_run[1:] == [f"{changed}, so this report is of the earlier data."]
    assert of_sweep[1:] == [f"{changed}, so reports of this sweep are of the earlier data."]


def test_a_run_that_is_done_goes_on_when_its_length_is_raised(place):
    place.leave_run("voice", "done", "trainer.max_steps=6")
    assert place.plan("run.name=voice", "trainer.max_steps=6").jobs == []
    assert place.plan("run.name=voice", "trainer.max_steps=9").jobs


@pytest.mark.parametrize("state", ["preempted", "failed", "running", "diverged"])
def test_a_run_that_is_not_done_is_submitted_again(place, state):
    place.leave_run("voice", state, has_model=False)
    assert place.plan("run.name=voice").jobs


def test_a_folder_with_other_settings_is_refused(place):
    place.leave_run("voice", "failed")
    assert "holds a run with other settings (algorithm.beta: 0.1 -> 0.9)" in place.refusal(
        "run.name=voice", "algorithm.beta=0.9"
    )


@pytest.mark.parametrize(
    ("state", "is_refused"),
    [("PENDING", True), ("RUNNING", True), ("COMPLETING", True), ("REQUEUE_HOLD", True), ("COMPLETED", False)],
)
def test_a_run_that_is_in_the_queue_is_not_submitted_twice(place, state, is_refused):
    path = place.runs / "voice"
    place.leave_jobs(path, "11", "12")
    place.queue["12"] = state
    if is_refused:
        message = place.refusal("run.name=voice")
        assert message.startswith(f"{path}: job 12 is queued or running for it.")
        assert "scancel 12" in message
    else:
        assert place.plan("run.name=voice").jobs


SWEEP = ["algorithm.beta=0.1,0.3", "optim.learning_rate=1e-5,1e-4", "sweep.name=grid"]


def test_a_sweep_is_an_array_after_the_job_that_computes_what_its_points_share(place):
    submission = place.plan(*SWEEP, "cluster.max_parallel=3")
    folder = place.runs / "grid"
    reference, array = submission.jobs
    assert (reference.module, reference.is_array, reference.waits) == ("prefopt.prepare", False, False)
    assert (array.module, array.is_array, array.waits, array.parallel) == ("prefopt.train", True, True, 3)
    assert (submission.folder, submission.is_sweep) == (folder, True)
    assert array.with_ids(["77"]).after == ["77"]
    assert [task.run for task in array.tasks.values()] == [
        folder / f"beta-{beta}_learning_rate-{rate}" for beta in ("0.1", "0.3") for rate in ("1e-05", "0.0001")
    ]
    assert list(array.tasks) == [0, 1, 2, 3]
    for config, task in zip(configs(array), array.tasks.values(), strict=True):
        assert RunDirectory.of(config).path == task.run
        assert config.logger.group == "grid"
    (shared,) = configs(reference)
    assert RunDirectory.of(shared).path == reference.tasks[0].run == folder / "reference"


def test_a_sweep_has_a_name_of_its_own_that_its_points_decide(place):
    first = place.plan("algorithm.beta=0.1,0.3").folder
    assert first.parent == place.runs
    assert first.name.startswith("dpo-")
    assert place.plan("algorithm.beta=0.1,0.3").folder == first
    assert place.plan("algorithm.beta=0.1,0.4").folder != first
    assert place.plan("sweep=seeds").folder.name.startswith("dpo-seeds-")


def test_writing_a_sweep_tells_later_commands_its_points(place):
    submission = place.plan(*SWEEP)
    submission.write("the command")
    written = json.loads((submission.folder / "sweep.json").read_text())
    assert [point["index"] for point in written["points"]] == [0, 1, 2, 3]
    assert written["points"][3]["changes"] == {"algorithm.beta": "0.3", "optim.learning_rate": "0.0001"}
    assert "sweep.resume=true submits what is not done" in place.refusal(*SWEEP)


def test_resuming_a_sweep_submits_the_points_that_are_not_done_under_their_own_numbers(place):
    submission = place.plan(*SWEEP)
    submission.write("the command")
    ends = {0: "done", 1: "failed", 2: "done"}
    for index, state in ends.items():
        run = RunDirectory(submission.jobs[-1].tasks[index].run)
        run.model.mkdir(parents=True)
        run.status.write_text(json.dumps({"state": state}))
    again = place.plan(*SWEEP, "sweep.resume=true")
    assert {i: task.run for i, task in again.jobs[-1].tasks.items()} == {
        index: submission.jobs[-1].tasks[index].run for index in (1, 3)
    }


def test_a_sweep_of_which_all_is_done_says_so(place):
    submission = place.plan(*SWEEP)
    submission.write("the command")
    for task in submission.jobs[-1].tasks.values():
        run = RunDirectory(task.run)
        run.model.mkdir(parents=True)
        run.status.write_text(json.dumps({"state": "done"}))
    again = place.plan(*SWEEP, "sweep.resume=true")
    assert (again.jobs, again.answer) == ([], f"{submission.folder}: all 4 points are done.")


def test_a_sweep_that_is_in_the_queue_is_not_resumed(place):
    submission = place.plan(*SWEEP)
    submission.write("the command")
    place.leave_jobs(submission.folder, "20", "21")
    place.queue = {"20": "COMPLETED", "21_0": "COMPLETED", "21_1": "PENDING"}
    assert "job 21 is queued or running" in place.refusal(*SWEEP, "sweep.resume=true")
    place.queue["21_1"] = "FAILED"
    assert place.plan(*SWEEP, "sweep.resume=true").jobs


def test_a_sweep_that_is_not_there_cannot_be_resumed(place):
    message = place.refusal(*SWEEP, "sweep.resume=true")
    assert f"there is no sweep {place.runs / 'grid'} yet" in message


def test_a_group_that_is_named_is_the_group_of_every_run_of_a_sweep(place):
    reference, array = place.plan(*SWEEP, "logger.group=ours").jobs
    assert {config.logger.group for job in (reference, array) for config in configs(job)} == {"ours"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*SWEEP, "run.name=mine"], "run.name with a sweep: its runs are named after what sets them apart."),
        (["sweep=optuna_dpo", "run.name=mine"], "run.name with a sweep"),
        (["sweep.name=mine"], "sweep.name=mine: this is no sweep, for no setting has several values."),
        (["sweep.name=mine", "sweep.resume=true"], "sweep.name=mine and sweep.resume=true: this is no sweep"),
    ],
)
def test_what_would_have_no_effect_is_refused(place, overrides, expected):
    assert expected in place.refusal(*overrides)


def test_a_sweep_of_other_points_does_not_go_into_the_same_folder(place):
    place.plan(*SWEEP).write("the command")
    message = place.refusal(*SWEEP, "sweep.resume=true", "algorithm.beta=0.1,0.4")
    assert "holds a sweep with other points. Set sweep.name" in message


def test_a_folder_that_holds_something_else_is_no_place_for_a_sweep(place):
    (place.runs / "grid").mkdir(parents=True)
    assert place.plan(*SWEEP).jobs, "an empty one is"
    (place.runs / "grid" / "thesis.txt").write_text("mine")
    assert "exists and is no sweep" in place.refusal(*SWEEP)


def references(place: Place, *overrides: str) -> list[str]:
    """The folders of what a sweep computes before its points."""
    first, *rest = place.plan(*overrides).jobs
    return [task.run.name for task in first.tasks.values()] if rest else []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algorithm.beta=0.1,0.3"], ["reference"]),
        (["run.seed=0,1,2"], ["reference"]),
        (["run.seed=0,1", "data.held_out=null", "data.held_out_fraction=0.2"], ["reference"]),
        (["algorithm.beta=choice(0.1)"], []),
        (["reference=live", "algorithm.beta=0.1,0.3"], []),
        (["reference=none", "algorithm.beta=0.1,0.3"], []),
        (["algorithm=sft", "data.held_out=null", "optim.learning_rate=1e-5,1e-4"], []),
        (["data.max_length=256,512"], []),
        (["data.max_length=256,512", "run.seed=0,1"], ["reference-0", "reference-1"]),
        (["trainer.precision=fp32,bf16", "algorithm.beta=0.1,0.3"], ["reference-0", "reference-1"]),
        (["peft=none,lora", "algorithm.beta=0.1,0.3"], ["reference"]),
        (["reference=store,live", "algorithm.beta=0.1,0.3"], ["reference"]),
    ],
)
def test_what_points_share_is_computed_before_them_once_per_model_and_data(place, overrides, expected):
    assert references(place, *overrides) == expected


def test_two_models_have_two_references_in_one_array(place):
    (place.root / "other").mkdir()
    submission = place.plan(f"model.path='{place.root}/model','{place.root}/other'", "run.seed=0,1")
    reference, _ = submission.jobs
    assert reference.is_array
    assert [config.model.path for config in configs(reference)] == [f"{place.root}/model", f"{place.root}/other"]


CHAIN = ["algorithm=sft", "data.held_out=null"]


def chain(place: Place, *stages: str) -> str:
    """A config folder with a chain `two` of these stages."""
    folder = place.root / "chains"
    (folder / "chain").mkdir(parents=True)
    (folder / "chain" / "two.yaml").write_text("stages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    return str(folder)


SFT = "{name: sft, overrides: [algorithm=sft, data.held_out=null, run.name=first]}"
DPO = "{name: dpo, overrides: ['model.path={sft}/model', run.name=second]}"


def test_the_stages_of_a_chain_wait_for_each_other_and_start_from_each_others_models(place):
    submission = place.plan("chain=two", config_dir=chain(place, SFT, DPO))
    first, second = submission.jobs
    assert [first.waits, second.waits] == [False, True]
    assert (first.folder, second.folder) == (place.runs / "first", place.runs / "second")
    assert submission.folder == second.folder
    assert configs(second)[0].model.path == str(place.runs / "first" / "model")


def test_a_stage_that_is_done_is_left_out_and_the_next_one_starts_at_once(place):
    folder = chain(place, SFT, DPO)
    place.leave_run("first", "done", *CHAIN)
    (second,) = place.plan("chain=two", config_dir=folder).jobs
    assert (second.folder.name, second.waits) == ("second", False)
    place.leave_run("second", "done", f"model.path='{place.runs}/first/model'")
    submission = place.plan("chain=two", config_dir=folder)
    assert submission.jobs == []
    assert submission.answer.count("this run is done") == 2
    assert len(place.plan("chain=two", "submit.dry_run=true", config_dir=folder).jobs) == 2


def test_what_a_chain_waits_for_its_first_job_waits_for_whichever_that_is(place):
    folder = chain(place, SFT, DPO)
    first, second = place.plan("chain=two", "submit.after=99", config_dir=folder).jobs
    assert (list(first.after), list(second.after)) == (["99"], [])
    place.leave_run("first", "done", *CHAIN)
    (second,) = place.plan("chain=two", "submit.after=99", config_dir=folder).jobs
    assert list(second.after) == ["99"]


@pytest.mark.parametrize(
    ("stages", "overrides", "expected"),
    [
        (
            [SFT, "{name: dpo, overrides: ['model.path={sf}/model']}"],
            [],
            "stage dpo: model.path={sf}/model names stage sf",
        ),
        (["{name: dpo, overrides: ['model.path={dpo}/model']}"], [], "stages before it: none"),
        ([SFT, "{name: dpo}"], ["run.seed=1,2"], "chain and sweep: a chain takes one value per setting"),
        (["{overrides: []}"], [], "chain.stages[0]: must have a name and a list of overrides"),
        (["{name: a, overides: []}"], [], "chain.stages[0]: must have a name and a list of overrides"),
        (["{name: a, overrides: algorithm=sft}"], [], "chain.stages[0]: must have a name and a list of overrides"),
        ([SFT, "{name: dpo, overrides: [algorithm.bta=1]}"], [], "Did you mean algorithm.beta?"),
        (
            [
                "{name: a, overrides: [algorithm=sft, data.held_out=null]}",
                "{name: b, overrides: ['model.path={a}/model']}",
            ],
            ["run.name=voice"],
            "chain, stage b: {runs}/voice is the folder of an earlier stage too",
        ),
    ],
)
def test_a_chain_that_cannot_run_is_refused_with_its_stage(place, stages, overrides, expected):
    message = place.refusal("chain=two", *overrides, config_dir=chain(place, *stages))
    assert expected.replace("{runs}", str(place.runs)) in message


def test_the_shipped_chain_can_be_submitted(place):
    first, second = place.plan("chain=sft_then_dpo", "data=brand_voice", "model=prefopt_base").jobs
    (sft,), (dpo,) = configs(first), configs(second)
    assert (sft.algorithm.name.value, dpo.algorithm.name.value) == ("sft", "dpo")
    assert dpo.model.path == str(first.folder / "model")


def test_a_job_can_wait_for_a_job_by_its_id(place):
    assert place.plan("submit.after=123").jobs[0].after == ["123"]
    assert place.plan("submit.after=123_4").jobs[0].after == ["123_4"]


def test_a_sweep_that_waits_begins_with_its_reference_after_that_job(place):
    reference, array = place.plan(*SWEEP, "submit.after=123").jobs
    assert (reference.after, array.with_ids(["200"]).after) == (["123"], ["123", "200"])


@pytest.mark.parametrize("after", ["voice", "{runs}/voice"])
def test_a_job_can_wait_for_a_run_by_its_name_or_folder(place, after):
    path = place.leave_run("voice", "running")
    place.leave_jobs(path, "11", "12")
    place.queue = {"11": "FAILED", "12": "RUNNING"}
    assert place.plan("run.name=next", f"submit.after='{after.format(runs=place.runs)}'").jobs[0].after == ["12"]


def test_a_run_that_is_done_is_not_waited_for(place):
    place.leave_run("voice", "done")
    assert place.plan("run.name=next", "submit.after=voice").jobs[0].after == []


def test_a_whole_sweep_can_be_waited_for(place):
    sweep = place.plan(*SWEEP)
    sweep.write("the command")
    place.leave_jobs(sweep.folder, "30")
    place.queue = {"30_0": "COMPLETED", "30_3": "PENDING"}
    assert place.plan("run.name=next", "submit.after=grid").jobs[0].after == ["30"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["submit.after=nobody"], "submit.after=nobody: no such run, neither here nor in "),
        (["submit.after=stopped"], "is failed, and no job of it is queued. Submit it first."),
        (["submit.after=7", "cluster=local"], "submit.after=7 with cluster=local: only Slurm waits for its jobs"),
        (["cluster.time='00:10:00'", "cluster.margin_s=301"], "more than half of cluster.time=00:10:00"),
        (["cluster.time='1-00:00:00'", "cluster.margin_s=43201"], "Raise cluster.time or lower cluster.margin_s"),
        (["cluster.environment=nowhere.sh"], "cluster.environment=nowhere.sh: no such file (looked for "),
        (["data.train='{root}/trian.jsonl'"], "Did you mean {root}/train.jsonl?"),
        (["data.held_out='{root}/*.csv'"], "no file matches this pattern"),
        (["evaluation.neutral_texts='{root}/none.jsonl'"], "{root}/none.jsonl: no such file"),
        (["model.path='{root}/modle'"], "model.path={root}/modle: no such folder"),
        (["model.path=./modle"], "model.path=./modle: no such folder (looked for {root}/modle)"),
        (["deepspeed=zero2"], "needs a distributed launch"),
        (["algorithm.bta=1"], "Did you mean algorithm.beta?"),
        ([*SWEEP, "data.train='{root}/trian.jsonl'"], "Did you mean {root}/train.jsonl?"),
        (["data.train='{root}/train.jsonl','{root}/second.jsonl'"], "{root}/second.jsonl: no such file"),
        (["algorithm.beta=0.1,-1"], "this sweep cannot run; nothing was submitted."),
        (["algorithm.beta=interval(0.1,1)"], "an interval has no list of values"),
    ],
)
def test_what_would_fail_at_a_runs_start_is_refused_at_once(place, overrides, expected):
    place.leave_run("stopped", "failed")
    message = place.refusal(*(line.replace("{root}", str(place.root)) for line in overrides))
    assert expected.replace("{root}", str(place.root)) in message


def test_what_lies_on_a_hub_is_not_looked_for(place):
    assert place.plan("data.train=hub:someone/pairs", "data.held_out=null", "model.path=someone/model").jobs


def test_limits_that_leave_room_are_accepted(place):
    assert place.plan("cluster.time='00:10:00'", "cluster.margin_s=300").jobs
    assert place.plan("cluster=local", "cluster.time='00:01:00'").jobs, "nobody enforces a limit here"
    assert place.plan(f"cluster.environment='{place.root}/environment.sh'").jobs


def test_runs_are_checked_for_the_launch_that_the_cluster_gives_them(place, monkeypatch):
    monkeypatch.setattr("prefopt.config.checks.find_spec", lambda name: object())
    assert place.plan("cluster=slurm_1x8", "deepspeed=zero2").jobs
    assert "does not divide into 16 ranks" in place.refusal("cluster=slurm_2x8", "trainer.batch_size=8")


def test_the_points_of_the_plan_are_those_that_the_grammar_lists(place):
    submission = place.plan(*SWEEP)
    axes = read_axes([*place.base, *SWEEP[:2]], {}, [])
    listed = plan_points(axes, None, ALONE).points
    assert [task.run.name for task in submission.jobs[-1].tasks.values()] == [point.name for point in listed]
