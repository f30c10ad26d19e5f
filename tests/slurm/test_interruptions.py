"""A run on a real Slurm comes to the same end, whatever Slurm does to it on the way."""

import json

from tests.slurm.conftest import job_of
from tests.zygote import Zygote

TWO_NODES = ["cluster.nodes=2", "cluster.preflight=true", "cluster.time='00:30:00'"]
HELD_AT = 3
HELD = {"FAULT_HOLD_AT": str(HELD_AT)}
"""The first attempt waits there to be stopped; its last checkpoint is of step 2."""
MARGIN_S = 150
"""Slurm looks at time limits twice a minute."""


def submit(cluster, workplace, name, *overrides, **faults):
    """Submits a run and returns its job's id."""
    said = cluster.prefopt(
        "submit", *workplace.quick, f"run.name={name}", *workplace.cluster, workplace.environment(**faults), *overrides
    )
    return job_of(said)


def final_numbers(workplace, *parts):
    report = json.loads((workplace.runs.joinpath(*parts) / "report" / "report.json").read_text())
    return report["held_out"]


def wait_for_step(cluster, workplace, name, step):
    cluster.until(lambda: workplace.status(name).get("step", 0) >= step)


def test_two_nodes_under_zero3_preempted_by_an_urgent_job_end_as_an_undisturbed_run(
    cluster, workplace, zygote: Zygote
):
    zero3 = ["deepspeed=zero3", "trainer.max_steps=10"]
    job = submit(cluster, workplace, "preempted", *TWO_NODES, *zero3, **HELD)
    wait_for_step(cluster, workplace, "preempted", 2)

    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    ).strip()
    cluster.wait_for_job(urgent, "COMPLETED")
    assert cluster.wait_for_job(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", workplace.log("preempted")

    first, second = workplace.attempts("preempted")
    assert (first["state"], first["next"], first["to_step"]) == ("preempted", "again", HELD_AT)
    assert (second["next"], second["job"]) == ("done", job)
    assert workplace.status("preempted")["attempts"] == 2
    assert workplace.log("preempted").count("all-reduce of 4 MiB") == 4  # two nodes, two attempts
    checkpoint = workplace.runs / "preempted" / "checkpoints" / "step-10" / "global_step10"
    assert {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)} <= {
        path.name for path in checkpoint.iterdir()
    }

    zygote.run([*workplace.quick, *zero3, "run.name=undisturbed"], ranks=2, log=workplace.root / "undisturbed.log")
    assert workplace.metrics("preempted") == workplace.metrics("undisturbed")
    assert final_numbers(workplace, "preempted") == final_numbers(workplace, "undisturbed")


def test_the_time_limit_sends_a_run_back_into_the_queue_and_it_goes_on(cluster, workplace, zygote: Zygote):
    steps = ["trainer.max_steps=12", "trainer.log_every=10"]
    limit = ["cluster.time='00:30:00'", f"cluster.margin_s={MARGIN_S}"]
    job = submit(cluster, workplace, "limited", *steps, *limit, **HELD)
    cancelled = submit(cluster, workplace, "cancelled", *steps, **HELD)

    wait_for_step(cluster, workplace, "cancelled", 2)
    cluster.run("scancel", cancelled)
    assert cluster.wait_for_job(cancelled, "CANCELLED", "COMPLETED", "FAILED")["JobState"] == "CANCELLED"
    status = workplace.status("cancelled")
    assert (status["state"], status["step"], status["attempts"]) == ("preempted", HELD_AT, 1)
    assert "SIG" in status["message"]

    wait_for_step(cluster, workplace, "limited", 2)
    cluster.set_time_limit(job, at_least_s=MARGIN_S // 2)  # the margin has begun
    cluster.until(lambda: cluster.job(job).get("Restarts", "0") != "0")
    cluster.set_time_limit(job, at_least_s=1800)
    assert cluster.wait_for_job(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", workplace.log("limited")
    first, second = workplace.attempts("limited")
    assert (first["state"], first["next"], first["to_step"]) == ("preempted", "again", HELD_AT)
    assert (second["next"], workplace.status("limited")["attempts"]) == ("done", 2)
    zygote.run([*workplace.quick, *steps, "run.name=unlimited"], ranks=0, log=workplace.root / "unlimited.log")
    assert [line["step"] for line in workplace.metrics("limited")] == [10, 12]
    assert workplace.metrics("limited") == workplace.metrics("unlimited")
    assert cluster.wait_for_job(cancelled, "CANCELLED")["JobState"] == "CANCELLED", "a cancelled job stays so"


def test_a_run_whose_node_dies_goes_on_on_another_node(cluster, workplace):
    job = submit(cluster, workplace, "lost_node", "trainer.max_steps=10", **HELD)
    wait_for_step(cluster, workplace, "lost_node", 2)
    node = cluster.job(job)["NodeList"]
    cluster.lose_node(node, job)
    try:
        cluster.until(lambda: cluster.job(job).get("Restarts", "0") != "0")
        assert cluster.wait_for_job(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", workplace.log("lost_node")
    finally:
        cluster.start_node(node)
        cluster.until(lambda: cluster.node_states()[node] == "idle")
    assert workplace.status("lost_node")["attempts"] == 2
    assert [line["step"] for line in workplace.metrics("lost_node")] == list(range(1, 11))


def test_a_run_that_crashes_at_the_same_step_again_and_again_is_left_alone(cluster, workplace):
    job = submit(cluster, workplace, "crashing", FAULT_EXIT_AFTER="3")
    assert cluster.wait_for_job(job, "FAILED", "COMPLETED")["JobState"] == "FAILED"
    attempts = workplace.attempts("crashing")
    assert [attempt["next"] for attempt in attempts] == ["again", "again", "stop"]
    assert [attempt["to_step"] for attempt in attempts] == [2, 2, 2]
    assert "came no further than step 2" in attempts[-1]["why"]
    assert attempts[-1]["why"] in workplace.log("crashing")


def test_a_bad_node_is_named_and_left_out_when_the_job_is_queued_again(cluster, workplace):
    cluster.until(lambda: set(cluster.node_states().values()) == {"idle"})  # then Slurm takes the first
    job = submit(
        cluster, workplace, "bad_node", "cluster.preflight=true", "trainer.max_steps=2", FAULT_FULL_DISK="pf1"
    )
    ended = cluster.wait_for_job(job, "COMPLETED", "FAILED")
    said = workplace.log("bad_node")
    assert (ended["JobState"], ended["NodeList"], ended["ExcNodeList"]) == ("COMPLETED", "pf2", "pf1"), said
    assert "pf1: 0.0 GiB free in" in said
