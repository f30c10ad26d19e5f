"""A run on two nodes that makes way for an urgent job comes to the same end as an undisturbed one."""

from tests.slurm.conftest import HELD, HELD_AT, final_numbers, submit, wait_for_step
from tests.zygote import Zygote

TWO_NODES = ["cluster.nodes=2", "cluster.preflight=true", "cluster.time='00:30:00'"]


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
