"""`prefopt status` against a real Slurm: how it lists arrays, what it says of jobs that ended, and no accounts."""

import json

from prefopt.runs.find import find_groups
from prefopt.state.look import look
from tests.run_states import leave_lock, submit, words_of, write_run, write_sweep

SCRIPT = """#!/bin/bash
#SBATCH --array=0-3%2 --output="{folder}/slurm/train-%A_%a.log" --time=02:00:00 --requeue
[ "$SLURM_ARRAY_TASK_ID" != 0 ] || {{ echo "error: data.train: no such file"; exit 2; }}
sleep 3600
"""


def test_an_array_is_told_apart_task_by_task_and_a_killed_point_from_one_that_runs(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    sweep = write_sweep(tmp_path / "a sweep", "refused", "trains", "starts", "waits")
    (sweep / "slurm").mkdir()
    script = sweep / "slurm" / "train.sh"
    script.write_text(SCRIPT.format(folder=sweep))
    job = cluster.run("sbatch", "--parsable", str(script)).strip()
    submit(sweep, job, dict(enumerate(("refused", "trains", "starts", "waits"))))
    write_run(sweep / "trains", "running", step=2)
    leave_lock(sweep / "trains", host="elsewhere", job=job)

    begun = {"refused": "failed", "trains": "running", "starts": "running", "waits": "queued"}
    cluster.until(lambda: words_of(look(find_groups([sweep]))) == begun)
    reasons = ("squeue", "-h", "-r", "-j", job, "-t", "PD", "-o", "%r")
    cluster.until(lambda: cluster.run(*reasons).split() == ["JobArrayTaskLimit"])
    found = json.loads(cluster.prefopt("status", "--json", str(sweep), check=False))
    refused, trains, starts, waits = found["groups"][0]["runs"]
    assert refused["why"] == f"job {job}_0: FAILED, error: data.train: no such file"
    assert trains["why"].startswith(f"before its first log line, job {job}_1 on pf")
    assert starts["why"].startswith(f"starting, job {job}_2 on pf")
    assert waits["why"] == f"job {job}_3 waits (JobArrayTaskLimit)"

    cluster.run("scancel", job)
    ended = {"refused": "failed", "trains": "killed", "starts": "not begun", "waits": "not begun"}
    cluster.until(lambda: words_of(look(find_groups([sweep]))) == ended)
    said = cluster.prefopt("status", str(sweep), check=False)
    assert f"job {job}_1: CANCELLED; process" in said


def test_a_job_that_slurm_never_heard_of_is_said_so_without_accounts(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    run = write_run(tmp_path / "run")
    submit(run, "99999999")
    (found,) = look(find_groups([run])).runs
    assert (found.word.value, found.why) == ("not begun", "Slurm does not know job 99999999 any more")
