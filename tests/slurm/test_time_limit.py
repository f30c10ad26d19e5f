"""A run that comes to its time limit goes on, and comes to the same end as one without; a cancelled one stays so."""

from tests.slurm.conftest import HELD, HELD_AT, submit, wait_for_step
from tests.zygote import Zygote

MARGIN_S = 150
"""Slurm looks at time limits twice a minute."""


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
