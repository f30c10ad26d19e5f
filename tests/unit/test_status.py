"""What a run is said to be, from what its files, its lock and Slurm say; and how `prefopt status` ends."""

import json
import subprocess
import sys

import pytest

from prefopt import status
from prefopt.runs.directory import State
from prefopt.runs.find import find_groups
from prefopt.state.look import look
from prefopt.state.queue import Queue
from prefopt.state.run_status import Word
from prefopt.storage.lock_file import SILENT_AFTER_S, Life, read_lock
from tests.run_states import (
    LATER,
    SUBMITTED,
    decide,
    leave_dead_lock,
    leave_lock,
    look_at,
    look_at_one,
    submit,
    words_of,
    write_log,
    write_run,
    write_sweep,
)

ELSEWHERE = {"host": "other", "system": "another boot"}
ALONE = {"running": "killed", "done": "done", "preempted": "preempted", "failed": "failed", "diverged": "diverged"}
ALONE |= {"pruned": "pruned"}


@pytest.mark.parametrize("state", [state.value for state in State])
def test_every_state_of_a_run_that_nothing_works_on_has_a_word(tmp_path, state):
    assert look_at_one(write_run(tmp_path / "run", state)).word.value == ALONE[state]


def test_a_live_lock_is_what_tells_a_running_run_from_a_killed_one(tmp_path):
    run = write_run(tmp_path / "run", "running", step=40)
    leave_lock(run)
    assert look_at_one(run).word is Word.running
    leave_dead_lock(run)
    killed = look_at_one(run)
    assert killed.word is Word.killed
    assert "is gone, goes on from step 40" in killed.why
    assert not killed.is_live


@pytest.mark.parametrize(
    ("age_s", "job", "slurm", "word"),
    [
        (SILENT_AFTER_S - 60, None, {}, "running"),
        (SILENT_AFTER_S + 60, None, {}, "killed"),
        (0.0, "12", {"12": "TIMEOUT"}, "killed"),
        (0.0, "12", {"12": "RUNNING pf1"}, "running"),
        (0.0, None, {"12": "TIMEOUT"}, "running"),  # somebody has started it by hand
        (0.0, "12", {"12": "PENDING (Priority)"}, "queued"),
    ],
)
def test_a_lock_of_another_machine_counts_by_its_age_and_its_job(tmp_path, age_s, job, slurm, word):
    run = write_run(tmp_path / "run", "running")
    leave_lock(run, age_s=age_s, job=job, **ELSEWHERE)
    submit(run, "12")
    assert look_at_one(run, slurm=slurm).word.value == word


def test_a_bystander_of_a_lock_writes_nothing(tmp_path):
    run = write_run(tmp_path / "run", "running")
    assert read_lock(run) is None
    leave_lock(run, job="12", age_s=100)
    before = sorted(tmp_path.rglob("*")), tmp_path.stat().st_mtime_ns
    seen = read_lock(run)
    assert (seen.life, seen.job) == (Life.alive, "12")
    assert (sorted(tmp_path.rglob("*")), tmp_path.stat().st_mtime_ns) == before
    leave_lock(run, **ELSEWHERE)
    assert read_lock(run).life is Life.unknown


def test_a_run_that_ends_while_it_is_looked_at_was_not_killed(tmp_path):
    run = write_run(tmp_path / "run", "running")

    def end(jobs, open_jobs):
        write_run(run, "done")
        return Queue()

    assert [found.word for found in look(find_groups([run]), ask=end).runs] == [Word.done]


def test_points_that_have_not_begun_are_queued_only_if_their_task_waits(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a", "b", "c", "d")
    submit(sweep, "12", {0: "a", 1: "b", 2: "c"})
    view = look_at(sweep, slurm={"12_0": "RUNNING pf1", "12_1": "PENDING (Priority)", "12_2": "CANCELLED"})
    assert words_of(view) == {"a": "running", "b": "queued", "c": "not begun", "d": "not begun"}
    whys = [run.why for run in view.runs]
    assert whys == ["starting, job 12_0 on pf1", "job 12_1 waits (Priority)", "job 12_2: CANCELLED", ""]


def test_a_job_that_waits_again_says_from_where_the_run_goes_on(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "stopped_in_time", "crashed")
    submit(sweep, "12", {0: "stopped_in_time", 1: "crashed"})
    write_run(sweep / "stopped_in_time", "preempted", step=8, message="stopped on request (SIGTERM)")
    write_run(sweep / "crashed", "failed", step=6, message="RuntimeError: NCCL\nmore")
    view = look_at(sweep, slurm={"12_0": "PENDING (BeginTime)", "12_1": "PENDING (BeginTime)"})
    assert words_of(view) == {"stopped_in_time": "preempted", "crashed": "queued"}
    first, second = view.runs
    assert first.why == "job 12_0 waits (BeginTime), goes on from step 8"
    assert second.why == "job 12_1 waits (BeginTime), goes on from step 6 after: RuntimeError: NCCL"
    assert first.is_live
    assert not any(run.needs_person for run in view.runs)


def test_between_two_attempts_a_run_with_a_job_on_nodes_is_not_over(tmp_path):
    run = write_run(tmp_path / "run", "failed", step=6, message="RuntimeError: NCCL")
    submit(run, "12")
    found = look_at_one(run, slurm={"12": "RUNNING pf2"})
    assert found.word is Word.running
    assert "goes on from step 6 after: RuntimeError: NCCL, job 12 on pf2" in found.why
    leave_lock(run)
    assert look_at_one(run).why == "starting again from step 6"


def test_a_decision_to_stop_is_shown_with_its_reason_until_something_happens_after_it(tmp_path):
    run = write_run(tmp_path / "run", "failed", step=4, message="UserError: no such file")
    submit(run, "7")
    decide(run, "again", to_step=4)
    assert look_at_one(run).word is Word.failed
    decide(run, "stop", to_step=4, why="2 attempts in a row came no further")
    stopped = look_at_one(run)
    assert (stopped.word, stopped.why) == (Word.stopped, "2 attempts in a row came no further")
    for state, step in (("failed", 5), ("preempted", 4)):
        write_run(run, state, step=step)
        assert look_at_one(run).word.value == state
    write_run(run, "failed", step=4)
    submit(run, "8", submitted="2026-01-02T00:00:00+00:00")
    assert look_at_one(run).word is Word.failed
    assert SUBMITTED < LATER < "2026-01-02"


def test_a_run_that_did_not_begin_says_what_its_log_says(tmp_path):
    run = write_run(tmp_path / "run", "preempted", step=4, message="stopped on request")
    submit(run, "7")
    write_log(run, "train-7.log", "error: data.train: no such file\nsrun: error: pf1: task 0: Exited\n")
    decide(run, "stop", state="none", to_step=4, why="the run did not begin; the log above says why")
    found = look_at_one(run)
    assert (found.word, found.why) == (Word.stopped, "error: data.train: no such file")
    assert found.log == run / "slurm" / "train-7.log"


def test_a_run_without_a_status_has_failed_only_if_something_went_wrong(tmp_path):
    lost, bad, waits = (write_run(tmp_path / name) for name in ("lost", "bad", "waits"))
    for run in (lost, bad, waits):
        submit(run, "7")
    write_log(bad, "train-7.log", "preflight: pf1: fit\npreflight: pf2: 0 of 8 GPUs answer\nsrun: error: pf2\n")
    assert look_at_one(lost).why == "Slurm does not know job 7 any more"
    assert look_at_one(lost, ended={"7": "NODE_FAIL"}).word is Word.failed
    assert look_at_one(bad).why == "preflight: pf2: 0 of 8 GPUs answer"
    leave_dead_lock(waits)
    assert look_at_one(waits).word is Word.killed


def test_a_local_run_that_was_stopped_before_its_first_step_has_not_failed(tmp_path):
    run = write_run(tmp_path / "run")
    write_log(run, "local.log", "stopped on request (SIGTERM); the same command goes on\n")
    assert look_at_one(run).word is Word.not_begun
    write_log(run, "local.log", "Traceback\nValueError: no\n")
    assert (look_at_one(run).word, look_at_one(run).why) == (Word.failed, "ValueError: no")


def test_failed_shows_the_first_line_of_the_message_or_the_last_error_of_the_log(tmp_path):
    run = write_run(tmp_path / "run", "failed", message="\nRuntimeError: a\nb")
    write_log(run, "local.log", "OSError: disk\nbye\n")
    assert look_at_one(run).why == "RuntimeError: a"
    write_run(run, "failed")
    assert look_at_one(run).why == "OSError: disk"
    write_log(run, "local.log", "nothing to see\nbye\n\n")
    assert look_at_one(run).why == "bye"


@pytest.mark.parametrize("text", ['{"state": "runn', "", "[]", '{"state": "dancing"}', '{"state": ["done"]}', "\xff"])
def test_a_status_that_cannot_be_understood_is_said_so_and_needs_somebody(tmp_path, text):
    run = write_run(tmp_path / "run", "running")
    (run / "status.json").write_text(text, encoding="latin-1")
    found = look_at_one(run)
    assert found.word is Word.damaged
    assert found.why.startswith("status.json ")
    assert found.needs_person


def test_nonsense_in_a_good_status_does_no_harm(tmp_path):
    run = write_run(tmp_path / "run", "failed")
    (run / "status.json").write_text('{"state": "failed", "step": "many", "attempts": -1, "message": {}}')
    (run / "slurm").mkdir()
    (run / "slurm" / "attempts.jsonl").write_bytes(b'{"next": "stop"}\n\x00\xff\n{"next"')
    found = look_at_one(run)
    assert (found.word, found.step, found.attempts, found.why) == (Word.failed, 0, 0, "")


def test_a_run_without_its_model_is_done_and_says_so_but_a_reference_has_none(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a")
    write_run(sweep / "a", "done", step=6)
    (sweep / "a" / "model").rmdir()
    write_run(sweep / "reference", "done")
    (sweep / "reference" / "model").rmdir()
    assert [(run.place.kind.value, run.word.value, run.why) for run in look_at(sweep).runs] == [
        ("reference", "done", "prepared"),
        ("point", "done", "its model/ is gone"),
    ]


def test_a_stage_that_samples_says_what_it_has_made_and_has_no_model(tmp_path):
    for name in ("kept", "gone"):
        run = write_run(tmp_path / name, "done", message="9 prompts: 7 pairs")
        (run / "model").rmdir()
        (run / "provenance.json").write_text('{"command": "python -m prefopt.sample model=hf"}')
    (tmp_path / "kept" / "pairs.jsonl").write_text("")
    assert [(run.place.kind.value, run.word.value, run.why) for run in look_at(tmp_path).runs] == [
        ("sample", "done", "its pairs.jsonl is gone"),
        ("sample", "done", "9 prompts: 7 pairs"),
    ]


def test_a_trial_may_diverge_and_a_point_may_not(tmp_path):
    for name, more in (("search", {"search": {}}), ("grid", {})):
        write_run(write_sweep(tmp_path / name, "a", **more) / "a", "diverged", step=3)
    trial, point = look_at(tmp_path / "search", tmp_path / "grid").runs
    assert (trial.word, point.word) == (Word.diverged, Word.diverged)
    assert (trial.needs_person, point.needs_person) == (False, True)


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("preempted", 0), ("pruned", 0), ("failed", 1), ("running", 1)]
)
def test_the_exit_code_says_whether_somebody_must_act(tmp_path, capsys, state, code):
    run = write_run(tmp_path / "run", state)
    ended = 0
    try:
        status.main([str(run)])
    except SystemExit as end:
        ended = end.code
    assert ended == code
    assert state in capsys.readouterr().out or state == "running"


def test_folders_without_runs_are_a_users_mistake(tmp_path, fails):
    assert "nowhere: no such folder" in fails(status.main, [str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    assert "empty: holds no runs" in fails(status.main, [str(tmp_path / "empty")])


def test_json_holds_every_run_and_what_to_do_next(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "sweep", "a", "b", command="prefopt submit sweep=x")
    write_run(sweep / "a", "failed", step=3, message="ValueError: no", lines=[{"step": 4, "time_s": 2.0, "loss": 0.5}])
    with pytest.raises(SystemExit):
        status.main(["--json", str(sweep)])
    found = json.loads(capsys.readouterr().out)
    (group,) = found["groups"]
    assert group["counts"] == {"failed": 1, "not begun": 1}
    first, second = group["runs"]
    assert {key: first[key] for key in ("name", "kind", "state", "why", "step", "loss", "time_s", "needs_person")} == {
        "name": "a",
        "kind": "point",
        "state": "failed",
        "why": "ValueError: no",
        "step": 4,
        "loss": 0.5,
        "time_s": 2.0,
        "needs_person": True,
    }
    assert (second["state"], second["step"]) == ("not begun", None)
    assert found["needs_person"]
    assert "prefopt submit sweep=x sweep.resume=true" in [advice["command"] for advice in found["next"]]


def test_the_command_answers_without_loading_torch():
    code = "import sys, prefopt.status; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
