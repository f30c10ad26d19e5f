"""Sweeps and chains on a real Slurm. All are submitted first and share the cluster, as they would elsewhere."""

import json

import pytest

from tests.conftest import write_rows
from tests.slurm.conftest import job_of

SIX = ["algorithm.beta=0.05,0.1,0.3", "optim.learning_rate=1e-3,3e-3", "sweep.name=six", "cluster.max_parallel=3"]
ITERATIVE = [
    "chain=iterative_dpo", "chain.rounds=1", "chain.num_samples=2", "model.path=prefopt:assets/base_model",
    "run.name=iterative", "evaluation.judges=[{kind: rule, patterns: ['[a-m]']}]", "evaluation.max_new_tokens=120",
    "evaluation.num_judged=2", "evaluation.regression=null",
]  # fmt: skip


class Queue:
    """What was submitted.

    Attributes:
        said: What each command said, by name.
    """

    def __init__(self, cluster, workplace) -> None:
        self.cluster, self.workplace = cluster, workplace
        self.said: dict[str, str] = {}

    def submit(self, name: str, *overrides: str, check: bool = True, **faults: str) -> str:
        workplace = self.workplace
        where = [*workplace.cluster, workplace.environment(**faults)]
        self.said[name] = self.cluster.prefopt("submit", *workplace.quick, *where, *overrides, check=check)
        return self.said[name]


@pytest.fixture(scope="module")
def chains(workplace):
    """Folder with a chain whose first stage is on other data."""
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]
    folder = workplace.root / "mine"
    (folder / "chain").mkdir(parents=True)
    good, bad = write_rows(folder / "sft.jsonl", rows), write_rows(folder / "bad.jsonl", [{"prompt": 1}])
    stage = "{name: sft, overrides: [algorithm=sft, data.held_out=null, 'data.train=%s', run.name=%s_sft]}"
    follow = "{name: dpo, overrides: ['model.path={sft}/model', run.name=%s_dpo]}"
    for name, data in (("good", good), ("bad", bad)):
        text = f"stages:\n  - {stage % (data, name)}\n  - {follow % name}\n"
        (folder / "chain" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def other_pairs(workplace):
    """Pairs that no other test has, so that nobody has computed their reference."""
    rows = [
        {"prompt": f"Which way to hall {i}?", "chosen": f"Left, then {i} doors on.", "rejected": f"Hall {i} is open."}
        for i in range(16)
    ]
    train = write_rows(workplace.root / "other.jsonl", rows[:12])
    held_out = write_rows(workplace.root / "other_held_out.jsonl", rows[12:])
    return [f"data.train={train}", f"data.held_out={held_out}"]


@pytest.fixture(scope="module")
def queue(cluster, workplace, chains, other_pairs):
    """Everything is in the queue."""
    queue = Queue(cluster, workplace)
    queue.submit("six", *SIX, FAULT_HOLD_AT="3", FAULT_HOLD_TASK="2")
    for name, *own in (("left", "run.seed=1"), ("right", "run.seed=2", "cluster.options=[--hold]")):
        queue.submit(name, f"sweep.name={name}", *own, "algorithm.loss_type=sigmoid,ipo", *other_pairs)
    for name in ("good", "bad"):
        queue.submit(f"chain_{name}", f"chain={name}", f"--config-dir={chains}")
    queue.submit("iterative", *ITERATIVE)
    return queue


def test_a_sweep_with_a_cancelled_member_is_completed_by_resume_and_nothing_else_runs_again(cluster, workplace, queue):
    reference, array = job_of(queue.said["six"]), job_of(queue.said["six"], 1)
    assert cluster.wait_for_job(reference, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", workplace.log("six")
    points = json.loads((workplace.runs / "six" / "sweep.json").read_text())["points"]
    victim = points[2]["name"]
    cluster.until(lambda: workplace.status("six", victim).get("state") == "running")
    cluster.run("scancel", f"{array}_2")
    for index in range(6):
        cluster.wait_for_job(f"{array}_{index}", "COMPLETED", "CANCELLED", "FAILED")

    states = {point["name"]: workplace.status("six", point["name"])["state"] for point in points}
    assert states.pop(victim) == "preempted"
    assert set(states.values()) == {"done"}, workplace.log("six")
    assert workplace.status("six", "reference")["state"] == "done"
    for name in states:
        work = json.loads((workplace.runs / "six" / name / "work.json").read_text())
        assert work["reference"]["num_computed"] == 0

    said = queue.submit("six_again", *SIX, "sweep.resume=true")
    again = job_of(said)
    assert "1 task" in said
    cluster.wait_for_job(f"{again}_2", "COMPLETED")
    assert workplace.status("six", victim) == {**workplace.status("six", victim), "state": "done", "attempts": 2}
    assert all(workplace.status("six", name)["attempts"] == 1 for name in states)
    assert "all 6 points are done" in queue.submit("six_done", *SIX, "sweep.resume=true")


def test_two_sweeps_compute_their_common_reference_once(cluster, workplace, queue):
    cluster.wait_for_job(job_of(queue.said["left"]), "COMPLETED")
    for place in (0, 1):
        cluster.run("scontrol", "release", job_of(queue.said["right"], place))
    computed = 0
    for name in ("left", "right"):
        array = job_of(queue.said[name], 1)
        for index in (0, 1):
            cluster.wait_for_job(f"{array}_{index}", "COMPLETED")
        for run in ("reference", "loss_type-sigmoid", "loss_type-ipo"):
            assert workplace.status(name, run)["state"] == "done"
            computed += json.loads((workplace.runs / name / run / "work.json").read_text())["reference"][
                "num_computed"
            ]
    assert computed == 12 + 4


def test_a_chain_starts_from_the_model_of_the_stage_before(cluster, workplace, queue):
    last = job_of(queue.said["chain_good"], 1)
    assert cluster.wait_for_job(last, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    provenance = json.loads((workplace.runs / "good_dpo" / "provenance.json").read_text())
    assert provenance["model"]["path"] == str(workplace.runs / "good_sft" / "model")
    assert workplace.status("good_dpo")["state"] == "done"


def test_a_stage_that_samples_ends_and_the_next_one_trains_on_its_pairs(cluster, workplace, queue):
    sampled, trained = "iterative-sample_1", "iterative-dpo_1"
    last = job_of(queue.said["iterative"], 1)
    assert cluster.wait_for_job(last, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", workplace.log(sampled)
    (attempt,) = workplace.attempts(sampled)
    assert (attempt["state"], attempt["next"]) == ("done", "done")
    num_pairs = len((workplace.runs / sampled / "pairs.jsonl").read_text().splitlines())
    data = json.loads((workplace.runs / trained / "provenance.json").read_text())["data"]
    assert data["tokenized"]["train"]["num_kept"] == num_pairs > 0
    assert f"kind sample  22 prompts: {num_pairs} pairs" in cluster.prefopt("status", str(workplace.runs / sampled))


def test_when_a_stage_fails_the_next_one_does_not_wait_for_ever(cluster, workplace, queue):
    first, second = job_of(queue.said["chain_bad"]), job_of(queue.said["chain_bad"], 1)
    assert cluster.wait_for_job(first, "FAILED", "COMPLETED")["JobState"] == "FAILED"
    cluster.until(lambda: cluster.job(second).get("JobState") in ("CANCELLED", None))
    assert not (workplace.runs / "bad_dpo" / "config.yaml").exists()
    assert "bad.jsonl:1" in workplace.log("bad_sft")
    assert "Traceback" not in workplace.log("bad_sft")


def test_what_slurm_or_prefopt_refuses_leaves_nothing_behind(cluster, workplace, queue):
    unknown = queue.submit("unknown", "run.name=nowhere", "cluster.partition=nonsense", check=False)
    assert "invalid partition" in unknown.lower()
    assert "Nothing was submitted" in unknown
    bad = queue.submit("typo", "run.name=nowhere", "algorithm.bta=1", check=False)
    assert "algorithm.bta: no such setting. Did you mean algorithm.beta?" in bad
    points = queue.submit("points", "sweep.name=nowhere", "algorithm.beta=0.1,0.1,-1", check=False)
    assert "the same run as point 0" in points
    assert "must be > 0, found -1" in points
    orphan = queue.submit("orphan", "run.name=nowhere", "submit.after=never_was", check=False)
    assert "submit.after=never_was: no such run" in orphan
    assert not (workplace.runs / "nowhere").exists()
    assert "nowhere" not in cluster.run("squeue", "-h", "-o", "%j")


def test_a_run_that_waits_is_not_submitted_twice(cluster, workplace, queue):
    held = ["run.name=held", "trainer.max_steps=2", "cluster.options=[--hold]"]
    job = job_of(queue.submit("held", *held))
    assert f"job {job} is queued or running" in queue.submit("held_again", *held, check=False)
    cluster.run("scancel", job)
