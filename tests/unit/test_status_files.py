"""What `prefopt status` reads: ends of files that others write, steps and time left, folders, and Slurm's answers."""

import json
import math
import os
import shutil
import subprocess
import tracemalloc
from functools import partial

import pytest

from prefopt.cluster.slurm import QueuedJob
from prefopt.config.load import load_config, to_yaml
from prefopt.data.steps import StepBatches
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.runs.find import Kind, find_folders, find_groups
from prefopt.runs.jobs import Submitted
from prefopt.state import queue as queue_module
from prefopt.state.logs import LOG_BYTES, find_error
from prefopt.state.look import look
from prefopt.state.progress import Progress, count_steps, read_progress, read_trainer_settings
from prefopt.state.queue import ask_slurm, find_ended
from prefopt.storage.files import read_last, read_objects
from tests.run_states import leave_lock, look_at, look_at_one, submit, write_log, write_run, write_sweep

EPOCHS = {"max_steps": "null", "tokens_per_device": "null", "batch_order": "random"}


def line(step, **values):
    return {"step": step, "time_s": step / 2, "loss": 0.5, **values}


def of_training(value):
    return "split" not in value


def test_the_last_whole_line_counts_and_one_that_is_being_written_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(1)) + "\n" + json.dumps(line(2)) + "\n" + json.dumps(line(3))[:-4])
    assert read_last(path, of_training) == line(2)
    path.write_text(json.dumps(line(1)) + "\n" + json.dumps(line(2)))
    assert read_last(path, of_training) == line(2)
    path.write_bytes(b"\x00\xff\n[1]\nnull\n")
    assert read_last(path, of_training) is None
    assert read_last(tmp_path / "none", of_training) is None


def test_a_line_longer_than_the_first_look_back_is_found(tmp_path):
    path = tmp_path / "metrics.jsonl"
    long = {**line(2), "split": "held_out", "words": "x" * 9000}
    path.write_text("".join(json.dumps(value) + "\n" for value in (line(1), long)))
    assert read_last(path, of_training) == line(1)
    assert read_last(path, lambda value: "words" in value) == long


def test_only_the_end_of_a_long_file_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(32 << 20)
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(line(7)).encode() + b"\n")
    tracemalloc.start()
    try:
        assert read_last(path, of_training) == line(7)
        find_error(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_damaged_lines_do_not_hide_the_jobs_after_them(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"job": "1"}\n{"job"\n\xff\n7\n{"job": "2"}\n')
    assert [value["job"] for value in read_objects(path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Traceback\nValueError: mine\nsrun: error: pf1: task 0: Exited with exit code 1\n", "ValueError: mine"),
        ("[rank0]: OSError: disk\ntorch.distributed.elastic.errors.ChildFailedError:\n", "[rank0]: OSError: disk"),
        ("srun: error: pf1: task 0: Killed\nloss 0.5\n", "srun: error: pf1: task 0: Killed"),
        ("\x1b[31mRuntimeError\x1b[0m: a\rbar 10%\rbar 99%\n", "RuntimeError: a"),
        ("slurmstepd: error: Detected 1 oom_kill event\nbye\n", "slurmstepd: error: Detected 1 oom_kill event"),
        ("preflight: pf1: fit, all-reduce of 4 MiB in 2.0 ms\n0 errors, all is well\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_error_of_a_log_is_the_last_line_that_says_which(tmp_path, text, error):
    assert find_error(write_log(tmp_path, "train.log", text)) == error


def test_a_line_of_which_only_the_end_was_read_is_no_error(tmp_path):
    text = "x" * LOG_BYTES + "Error: half\nall is well\n"
    assert find_error(write_log(tmp_path, "train.log", text)) == ""


def test_the_time_left_is_the_remaining_steps_at_the_mean_of_all_since_the_last_line():
    assert Progress(step=40, time_s=20.0, loss=None, age_s=0.0).eta_s(100) == 30.0
    assert Progress(step=40, time_s=20.0, loss=None, age_s=12.0).eta_s(100) == 18.0
    assert Progress(step=40, time_s=20.0, loss=None, age_s=500.0).eta_s(100) == 0.0
    assert Progress(step=40, time_s=20.0, loss=None, age_s=0.0).eta_s(30) == 0.0
    assert Progress(step=0, time_s=20.0, loss=None, age_s=0.0).eta_s(100) is None


def test_progress_is_of_the_last_training_line_and_a_loss_that_is_no_number_is_none(tmp_path):
    lines = [line(10), line(20, loss=None), line(20, split="held_out", loss=0.1)]
    run = RunDirectory(write_run(tmp_path / "run", "running", lines=lines))
    now = run.metrics.stat().st_mtime
    assert read_progress(run, now + 3) == Progress(20, 10.0, None, pytest.approx(3))
    assert read_progress(run, now - 3).age_s == 0
    write_run(run.path, lines=[line(1) | {"step": "x"}, line(1) | {"step": True}, {"step": 3, "time_s": 10**400}])
    assert read_progress(run, now) is None


def test_a_running_run_shows_steps_time_left_and_loss_and_a_killed_one_no_time_left(tmp_path):
    run = write_run(tmp_path / "run", "running", step=20, lines=[line(30)], max_steps=100, attempts=2)
    killed = look_at_one(run)
    leave_lock(run)
    running = look_at_one(run)
    assert (running.step, running.total, running.loss, running.time_s, running.why) == (
        30,
        100,
        0.5,
        15.0,
        "attempt 2",
    )
    assert 0 < running.eta_s <= 35, "less what has passed since that line"
    assert (killed.step, killed.total, killed.eta_s) == (30, 100, None)


def test_what_is_no_plain_training_is_said(tmp_path):
    run = write_run(tmp_path / "run", "running", max_steps=100)
    leave_lock(run)
    assert look_at_one(run).why == "before its first log line"
    write_run(run, lines=[line(100)])
    assert (look_at_one(run).why, look_at_one(run).eta_s) == ("evaluating", None)
    write_run(run, lines=[line(50)])
    groups, written = find_groups([run]), (run / "metrics.jsonl").stat().st_mtime
    for age_s, why in ((599, ""), (3700, "no log line for 1:01:40")):
        (found,) = look(groups, clock=partial(float, written + age_s)).runs
        assert found.why == why


@pytest.mark.parametrize(
    ("rows", "size", "ranks", "epochs"), [(22, 4, 1, 3.0), (24, 4, 2, 1.0), (7, 2, 2, 2.5), (3, 8, 1, 1)]
)
def test_steps_of_epochs_are_those_that_training_counts(tmp_path, rows, size, ranks, epochs):
    run = RunDirectory(write_run(tmp_path / "run", "running"))
    accumulation = 2
    batches = StepBatches(rows, seed=0, batch_size=size, accumulation=accumulation, num_ranks=ranks)
    per_epoch = math.ceil(len(batches) / ranks / accumulation)  # as DurableTrainer.total_steps
    step_size = {"per_device": size, "accumulation": accumulation, "num_ranks": ranks}
    provenance = {"step_size": step_size, "data": {"tokenized": {"train": {"num_kept": rows}}}}
    run.provenance.write_text(json.dumps(provenance))
    assert count_steps(run, EPOCHS | {"num_epochs": str(epochs)}) == math.ceil(epochs * per_epoch)
    assert count_steps(run, EPOCHS | {"num_epochs": str(epochs), "max_steps": "5"}) == 5
    assert count_steps(run, EPOCHS | {"num_epochs": "1", "batch_order": "length"}) is None


def test_where_batches_are_planned_by_tokens_a_checkpoint_knows_the_steps(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", "running"))
    settings = EPOCHS | {"num_epochs": "1.0", "tokens_per_device": "4096"}
    for step, total, is_complete in ((2, 30, True), (4, 40, True), (6, 50, False)):
        folder = run.checkpoints / f"step-{step}"
        folder.mkdir(parents=True)
        history = [{"max_steps": 1, "step": number, "loss": 0.123456} for number in range(2000)]
        content = {"log_history": history, "max_steps": total, "total_flos": 1.0}
        (folder / "trainer_state.json").write_text(json.dumps(content, indent=2, sort_keys=True))
        if is_complete:
            (folder / "COMPLETE").touch()
    step_size = {"per_device": 1, "accumulation": 1, "num_ranks": 1}
    provenance = {"step_size": step_size, "data": {"tokenized": {"train": {"num_kept": 7}}}}
    run.provenance.write_text(json.dumps(provenance))
    assert count_steps(run, settings) == 40
    shutil.rmtree(run.checkpoints)
    assert count_steps(run, settings) is None


def test_the_trainer_settings_are_read_as_they_were_written(tmp_path):
    run = RunDirectory(tmp_path)
    config = load_config(["+experiment=dpo_brand_voice", "trainer.max_steps=77", "trainer.log_every=3"])
    run.config.write_text(to_yaml(config))
    settings = read_trainer_settings(run)
    assert (settings["max_steps"], settings["log_every"], settings["tokens_per_device"]) == ("77", "3", "null")
    assert float(settings["num_epochs"]) == config.trainer.num_epochs
    assert settings["batch_order"] == config.trainer.batch_order.name
    run.config.write_text("model:\n  max_steps: 4\n")
    assert read_trainer_settings(run) == {}


def test_sweeps_runs_and_folders_of_both_are_found_each_run_once(tmp_path):
    sweep = write_sweep(tmp_path / "runs" / "sweep", "a", "b")
    for run in (sweep / "a", sweep / "reference-1", tmp_path / "runs" / "alone", tmp_path / "runs" / ".gone.removed"):
        write_run(run, "done")
    (tmp_path / "runs" / "empty").mkdir()
    found = [
        (group.title, [(place.name, place.kind) for place in group.places])
        for group in find_groups([tmp_path / "runs", sweep, tmp_path / "runs" / "alone"])
    ]
    points = [("reference-1", Kind.reference), ("a", Kind.point), ("b", Kind.point)]
    alone = str(tmp_path / "runs" / "alone")
    assert found == [(alone, [(alone, Kind.run)]), ("sweep", points)]
    assert [group.title for group in find_groups([tmp_path / "runs"])] == ["runs", "sweep"]


def test_the_folders_of_runs_are_those_that_began_each_once_whatever_a_sweeps_plan_says(tmp_path):
    sweep = write_sweep(tmp_path / "runs" / "sweep", "a", "b")
    (sweep / "sweep.json").write_text("{}")
    (sweep / "slurm").mkdir()
    (sweep / "slurm" / "jobs.jsonl").write_text("")  # as of a run that was submitted, and no run
    places = (tmp_path / "runs" / "alone", tmp_path / "runs" / "of_may" / "first", sweep / "a")
    runs = [write_run(path, "done") for path in places]
    write_run(tmp_path / "runs" / ".gone.removed", "done")
    (tmp_path / "runs" / "link").symlink_to(runs[0])
    assert find_folders([tmp_path / "runs"]) == find_folders([tmp_path / "runs", sweep, runs[0]]) == runs
    assert find_folders([sweep]) == [runs[2]]
    assert find_folders([runs[1], tmp_path / "runs"]) == [runs[1], runs[0], runs[2]]
    with pytest.raises(UserError, match="holds no runs"):
        find_folders([runs[0], write_log(tmp_path, "x.log", "").parent])


def test_a_report_that_is_named_is_its_run(tmp_path):
    run = write_run(tmp_path / "run", "done")
    (run / "report-other").mkdir()
    (run / "report-other" / "report.json").write_text("{}")
    ((place,),) = (group.places for group in find_groups([run / "report-other"]))
    assert (place.run.path, place.report) == (run, run / "report-other")


def test_a_reference_that_waits_is_shown_before_it_has_a_folder(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a")
    submit(sweep, "11", kind="prepare")
    submit(sweep, "12", {0: "a"})
    reference, point = look_at(sweep, slurm={"11": "RUNNING pf1", "12_0": "PENDING (Dependency)"}).runs
    assert (reference.place.kind, reference.word.value, reference.why) == (
        Kind.reference,
        "running",
        "starting, job 11 on pf1",
    )
    assert (point.word.value, point.queue) == ("queued", "PENDING")


def test_a_point_that_is_named_itself_knows_the_job_and_log_of_its_sweep(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a", "b")
    submit(sweep, "12", {0: "a", 1: "b"})
    write_run(sweep / "b", "failed", message="ValueError: no")
    log = write_log(sweep, "train-12_1.log", "ValueError: no\n")
    found = look_at_one(sweep / "b", slurm={"12_1": "PENDING (Priority)"})
    assert (found.place.job.id, found.word.value) == ("12_1", "queued")
    assert look_at_one(sweep / "b").log.samefile(log)


def test_the_newest_job_of_a_run_counts_and_logs_are_found_after_a_move(tmp_path):
    sweep = write_sweep(tmp_path / "before", "a", "b")
    submit(sweep, "12", {0: "a", 1: "b"})
    submit(sweep, "13", {1: "b"}, submitted="2026-01-03T00:00:00+00:00")
    write_run(sweep / "a", "failed")
    write_log(sweep, "train-12_0.log", "ValueError: no\n")
    moved = sweep.rename(tmp_path / "after")
    first, second = look_at(moved).runs
    assert (first.place.job.id, second.place.job.id) == ("12_0", "13_1")
    assert first.log == moved / "slurm" / "train-12_0.log"


def test_of_a_job_and_of_this_machine_the_log_that_was_written_to_last_counts(tmp_path):
    run = write_run(tmp_path / "run", "failed")
    submit(run, "12")
    logs = [write_log(run, name, f"ValueError: {name}\n") for name in ("local.log", "train-12.log")]
    for newest, other in (logs, logs[::-1]):
        os.utime(other, (1, 1))
        os.utime(newest, (2, 2))
        found = look_at_one(run)
        assert (found.log, found.why) == (newest, f"ValueError: {newest.name}")


@pytest.mark.parametrize("name", ["..", "", "x/y", "/etc", "\ud800", "a\0b"])
def test_a_point_outside_of_its_sweep_is_refused(tmp_path, name):
    sweep = write_sweep(tmp_path / "sweep", "a")
    content = json.loads((sweep / "sweep.json").read_text())
    content["points"][0]["name"] = name
    (sweep / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no plain folder name"):
        find_groups([sweep])


@pytest.mark.parametrize("text", ['{"format": 1', '{"format": 1}', '{"format": 1, "points": [3]}', '{"format": 2}'])
def test_a_sweep_that_cannot_be_understood_is_refused_with_its_file(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: (damaged|of another version)"):
        find_groups([tmp_path])


def test_tasks_that_slurm_lists_together_are_told_apart():
    job = [Submitted(f"12_{index}", None, "") for index in (0, 2, 5, 6)]
    rows = [QueuedJob("12_[0-2,5%4]", "PENDING", "(Resources)")]
    found = ask_slurm(job, job, queued=lambda jobs: rows, ended=lambda jobs: []).jobs
    assert sorted(found) == ["12_0", "12_1", "12_2", "12_5"]
    assert found["12_5"].reason == "Resources"


def test_slurm_is_asked_once_each_and_accounts_only_of_what_the_queue_does_not_know():
    asked = []

    def queued(jobs):
        asked.append(("squeue", jobs))
        return [QueuedJob("12_0", "RUNNING", "pf1")]

    def ended(jobs):
        asked.append(("sacct", jobs))
        return [QueuedJob("9", "FAILED", ""), QueuedJob("12_0", "FAILED", "")]

    jobs = [Submitted(job, None, "") for job in ("9", "12_0", "12_1", "10", "no number; rm -rf")]
    found = ask_slurm(jobs, [jobs[0], jobs[1]], queued=queued, ended=ended)
    assert asked == [("squeue", ["9", "10", "12"]), ("sacct", ["9"])]
    assert {job: row.state for job, row in found.jobs.items()} == {"12_0": "RUNNING", "9": "FAILED"}
    asked.clear()
    assert ask_slurm([], [], queued=queued, ended=ended).jobs == {}
    assert asked == []


def test_a_queue_that_does_not_answer_is_a_note_and_no_error(tmp_path):
    run = write_run(tmp_path / "run", "preempted")
    submit(run, "12")

    def silent(jobs):
        raise UserError("squeue: does not answer. Try again later.")

    place = find_groups([run])[0].places[0]
    found = ask_slurm([place.job], [place.job], queued=silent, ended=lambda jobs: [])
    assert found.notes == ["squeue: does not answer. Try again later. Which jobs wait or run is not known"]


@pytest.mark.parametrize(
    ("output", "states"),
    [
        ("12_0|CANCELLED by 1000\n12_1|COMPLETED\n12_2|RUNNING\n", {"12_0": "CANCELLED", "12_1": "COMPLETED"}),
        ("Slurm accounting storage is disabled\n", {}),
    ],
)
def test_accounts_tell_only_of_jobs_that_are_over(monkeypatch, output, states):
    monkeypatch.setattr(queue_module.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(
        queue_module.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, output, "")
    )
    assert {job.id: job.state for job in find_ended(["12"])} == states


def test_without_slurms_commands_nobody_is_asked_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Submitted("12", None, "")
    found = ask_slurm([job], [job])
    assert found.jobs == {}
    assert "squeue is not on this machine" in found.notes[0]
