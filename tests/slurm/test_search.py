"""A search on a real Slurm: an array of trials, one of them interrupted and queued again."""

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from prefopt.sweeps import study
from prefopt.sweeps.definition import Search, name_of
from prefopt.sweeps.folder import SweepFolder
from tests.slurm.conftest import job_of


def test_every_task_of_a_search_has_one_trial_and_keeps_it_when_it_is_queued_again(cluster, workplace):
    quick = [line for line in workplace.quick if not line.startswith("optim")]
    said = cluster.prefopt(
        "submit",
        *quick,
        *workplace.cluster,
        workplace.environment(FAULT_HOLD_AT="3", FAULT_HOLD_TASK="0"),
        "reference=live",
        "trainer.eval_every=2",
        "sweep.name=searched",
        "sweep.search.num_trials=3",
        "cluster.max_parallel=2",
        "algorithm.beta=tag(log, interval(0.01, 0.5))",
        "optim.learning_rate=tag(log, interval(1e-5, 1e-2))",
    )
    array = job_of(said)
    cluster.until(lambda: workplace.status("searched", "trial-000").get("state") == "running")
    cluster.run("scontrol", "requeue", f"{array}_0")
    for index in range(3):
        found = cluster.wait_for_job(f"{array}_{index}", "COMPLETED", "FAILED", "CANCELLED")
        assert found["JobState"] == "COMPLETED", workplace.log("searched")

    folder = SweepFolder(workplace.runs / "searched")
    with study.open_study(folder.path, Search.read(folder)) as opened:
        trials = opened.get_trials()
    assert sorted(trial.user_attrs[study.TASK] for trial in trials) == [0, 1, 2]
    for trial in trials:
        name = name_of(trial.user_attrs[study.TASK])
        state = workplace.status("searched", name)["state"]
        assert trial.state is {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[state]
        config = (folder.path / name / "config.yaml").read_text()
        assert f"beta: {trial.params['algorithm.beta']}" in config
    assert workplace.status("searched", "trial-000")["attempts"] == 2
    assert workplace.log("searched").count("trial-000: trial") >= 3, "asked twice and told"
