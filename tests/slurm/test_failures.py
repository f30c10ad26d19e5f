"""What becomes of a run whose node dies, whose node is bad, or that crashes again and again."""

from tests.slurm.conftest import HELD, submit, wait_for_step


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
