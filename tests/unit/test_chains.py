"""Chains whose stages sample, in several rounds: what is submitted, what is left out, and what is refused before."""

import json
from pathlib import Path

import pytest

from prefopt.config.load import to_yaml
from prefopt.runs.directory import RunDirectory
from prefopt.runs.find import Kind, find_groups
from prefopt.sweeps.jobs import Job
from tests.conftest import write_rows
from tests.unit.test_planning import Place, chain, configs
from tests.unit.test_planning import place as place_of_runs

place_without_prompts = place_of_runs
RULE = "evaluation.judges=[{kind: rule, patterns: [good]}]"
ITERATIVE = ["chain=iterative_dpo", RULE]
SAMPLE = "{name: sample, command: sample, overrides: ['model.path={dpo}/model']}"


@pytest.fixture
def place(place_without_prompts) -> Place:
    """With prompts to sample answers to, and held-out pairs of other prompts."""
    place = place_without_prompts
    write_rows(place.root / "train.jsonl", [{"prompt": f"What is {i}?"} for i in range(3)])
    write_rows(place.root / "held_out.jsonl", [{"prompt": "Who?", "chosen": "good", "rejected": "bad"}])
    return place


def names(jobs: list[Job]) -> list[str]:
    """The names of the jobs' folders, without digests."""
    return [job.folder.name.rpartition("-")[0] for job in jobs]


def split_arguments(job: Job) -> tuple[list[str], list[str]]:
    """Overrides and options of a job with one task."""
    ((_, task),) = job.tasks.items()
    options = [each for each in task.overrides if each.startswith("--")]
    return [each for each in task.overrides if each not in options], options


def read(job: Job):
    """The configuration that a job will compose."""
    task = job.tasks[0]
    plain = Job(job.name, job.folder, job.module, {0: type(task)(task.run, split_arguments(job)[0])})
    return configs(plain)[0]


def leave_pairs(job: Job) -> Path:
    """What a stage that has sampled leaves."""
    run = RunDirectory(job.folder)
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(read(job)))
    run.provenance.write_text(json.dumps({"command": "python -m prefopt.sample model=hf", "num_samples": 4}))
    run.status.write_text(json.dumps({"state": "done", "step": 0, "attempts": 1, "message": "3 prompts: 2 pairs"}))
    run.pairs.write_text("")
    return run.path


def test_each_round_samples_from_the_model_of_the_round_before_and_trains_it(place):
    jobs = place.plan(*ITERATIVE).jobs
    assert names(jobs) == ["sample_1", "dpo_1", "sample_2", "dpo_2", "sample_3", "dpo_3"]
    assert [job.module for job in jobs] == ["prefopt.sample", "prefopt.train"] * 3
    assert [job.waits for job in jobs] == [False, True, True, True, True, True]
    runs = [read(job) for job in jobs]
    first, second = str(place.root / "model"), str(jobs[1].folder / "model")
    assert [run.model.path for run in runs] == [first, first, second, second, *[str(jobs[3].folder / "model")] * 2]
    assert [run.data.train for run in runs[1::2]] == [str(job.folder / "pairs.jsonl") for job in jobs[::2]]
    assert {run.data.train for run in runs[::2]} == {f"{place.root}/train.jsonl"}
    assert {run.data.held_out for run in runs} == {f"{place.root}/held_out.jsonl"}
    assert all(split_arguments(job)[1] == ["--num-samples=4"] for job in jobs[::2])


def test_rounds_sample_with_seeds_of_their_own_and_train_with_the_same(place):
    runs = [read(job) for job in place.plan(*ITERATIVE, "run.seed=7").jobs]
    assert [run.run.seed for run in runs] == [7, 7, 8, 7, 9, 7]


def test_more_rounds_go_on_where_fewer_ended(place):
    one, three = (place.plan(*ITERATIVE, f"chain.rounds={rounds}").jobs for rounds in (1, 3))
    assert [job.folder for job in one] == [job.folder for job in three[:2]]
    leave_pairs(one[0])
    left = place.plan(*ITERATIVE).jobs
    assert names(left) == names(three)[1:]
    assert not left[0].waits
    answer = place.plan(*ITERATIVE, "chain.rounds=1", "submit.dry_run=true").answer
    assert f"its pairs have been sampled: {one[0].folder}/pairs.jsonl" in answer


def test_what_does_not_decide_the_pairs_leads_to_the_same_ones(place):
    def first(*overrides: str) -> Path:
        return place.plan(*ITERATIVE, "chain.rounds=1", *overrides).jobs[0].folder

    usual = first()
    assert first("algorithm.beta=0.3", "optim.learning_rate=1e-3", "trainer.max_steps=5") == usual
    others = [
        ["run.seed=1"],
        ["chain.num_samples=8"],
        ["evaluation.max_new_tokens=9"],
        ["evaluation.judges=[{kind: rule, patterns: [bad]}]"],
        ["data.system=Be brief."],
    ]
    assert len({usual, *(first(*each) for each in others)}) == 1 + len(others)


def test_pairs_that_another_chain_samples_already_are_waited_for(place):
    sample, train = place.plan(*ITERATIVE, "chain.rounds=1").jobs
    place.leave_jobs(sample.folder, "7")
    place.queue = {"7": "RUNNING"}
    (other,) = place.plan(*ITERATIVE, "chain.rounds=1", "algorithm.beta=0.3", "submit.after=5").jobs
    assert other.folder.name.startswith("dpo_1")
    assert other.folder != train.folder
    assert (list(other.after), other.waits) == (["5", "7"], False)


def test_a_given_name_stands_before_the_names_of_all_stages(place):
    jobs = place.plan(*ITERATIVE, "run.name=voice", "chain.rounds=2").jobs
    assert [job.folder.name for job in jobs] == ["voice-sample_1", "voice-dpo_1", "voice-sample_2", "voice-dpo_2"]
    leave_pairs(jobs[0])
    said = place.refusal(*ITERATIVE, "run.name=voice", "chain.num_samples=8")
    assert "voice-sample_1: holds pairs that were sampled with other settings (chain.num_samples: 4 -> 8)" in said


def test_a_stage_may_sample_in_a_chain_without_rounds(place):
    stages = ["{name: ask, command: sample}", "{name: dpo, overrides: ['data.train={ask}/pairs.jsonl']}"]
    ask, dpo = place.plan("chain=two", RULE, config_dir=chain(place, *stages)).jobs
    assert names([ask]) == ["ask"]
    assert split_arguments(ask)[1][0] == "--num-samples=4"
    assert configs(dpo)[0].data.train == str(ask.folder / "pairs.jsonl")


def test_a_quantifier_of_a_regular_expression_names_no_stage(place):
    rule = 'evaluation.judges=[{kind: rule, patterns: ["[a-z]{3}"]}]'
    (ask,) = place.plan(
        "chain=two", config_dir=chain(place, f"{{name: ask, command: sample, overrides: ['{rule}']}}")
    ).jobs
    assert rule in split_arguments(ask)[0]


def test_held_out_prompts_are_not_sampled(place):
    write_rows(place.root / "train.jsonl", [{"prompt": "What?"}, {"prompt": "Who?"}])
    said = place.refusal(*ITERATIVE)
    assert f"{place.root}/train.jsonl:2" in said
    assert "the same prompt as the held-out row" in said
    assert "data.on_overlap=skip" in said
    assert len(place.plan(*ITERATIVE, "data.on_overlap=skip").jobs) == 6
    assert len(place.plan(*ITERATIVE, "data/gate=off").jobs) == 6


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluation.judges=[]"], "evaluation.judges: required"),
        (["evaluation.judges=[classifier]"], "classifier: learns from pairs, and these are only to be made"),
        (["chain.num_samples=1"], "chain.num_samples: must be >= 2, found 1"),
        (["chain.rounds=0"], "chain.rounds: must be >= 1 or null, found 0"),
        (["chain.rounds=100000"], "chain.rounds: must be at most 1,000"),
        (["chain=none", "chain.rounds=2"], "chain.rounds=2 has no effect without a chain"),
        (["data.held_out=null"], "stage dpo: data.held_out: required with chain.rounds=3"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["run.seed=1,2"], "chain and sweep"),
    ],
)
def test_what_no_round_could_use_is_refused_before_anything_is_submitted(place, overrides, expected):
    assert expected in place.refusal(*ITERATIVE, *overrides)


def test_rows_without_a_prompt_are_refused_before_anything_is_submitted(place):
    write_rows(place.root / "train.jsonl", [{"prompt": "What?"}, {"question": "Who?"}])
    assert "train.jsonl:2: " in place.refusal(*ITERATIVE)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([SAMPLE], "model.path={dpo}/model names stage dpo; stages: sample."),
        ([SAMPLE, "{name: dpo, overrides: ['data.train={samples}/pairs.jsonl']}"], "{samples}/pairs.jsonl names"),
        (["{name: a, command: judge}"], "chain.stages[0]: command must be train or sample, found 'judge'"),
        (["{name: a/b}"], "chain.stages[0]: no stage can be called 'a/b'"),
        (["{name: 3rd}"], "chain.stages[0]: no stage can be called '3rd': a letter"),
    ],
)
def test_a_wrong_stage_is_refused_in_a_chain_with_rounds_too(place, stages, expected):
    assert expected in place.refusal("chain=two", "chain.rounds=2", RULE, config_dir=chain(place, *stages))


def test_nothing_needs_to_be_held_out_where_all_is_trained(place):
    nothing = ["data.held_out=null", "data.held_out_fraction=0"]
    assert len(place.plan(*ITERATIVE, *nothing).jobs) == 6


def test_a_stage_that_samples_is_known_as_one_before_it_begins(place):
    job = place.plan(*ITERATIVE).jobs[0]
    place.leave_jobs(job.folder, "7")
    job.script.write_text("")
    ((found,),) = [group.places for group in find_groups([job.folder])]
    assert found.kind is Kind.sample


def test_a_stage_that_samples_is_no_run_among_runs(place):
    leave_pairs(place.plan(*ITERATIVE).jobs[0])
    ((found,),) = [group.places for group in find_groups([place.runs])]
    assert found.kind is Kind.sample
