"""What follows an attempt at a run: done, again, or a stop that people must look at."""

import json
import os
from dataclasses import replace

import pytest

from prefopt.cluster.attempts import MAX_IDLE, MAX_STALLED, Attempt, decide_next, main, read_attempts
from prefopt.distributed.entry import ATTEMPT, run_entry
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import append_line

MAX_ATTEMPTS, MAX_CRASHES = 100, 3


def attempt(state: str, from_step: int, to_step: int) -> Attempt:
    """An earlier attempt."""
    return Attempt("7", "2026-01-01T00:00:00+00:00", state, from_step, to_step, 1, "again", "")


def decide(state: str | None, step: int = 0, *, earlier=(), code: int = 1, message: str = "") -> Attempt:
    status = {} if state is None else {"state": state, "step": step, "attempts": 1, "message": message}
    return decide_next(status, list(earlier), "7", code, MAX_ATTEMPTS, MAX_CRASHES)


def follow(*ends: tuple[str, int]) -> list[str]:
    """What follows each of several attempts, as they come one after the other."""
    earlier: list[Attempt] = []
    for state, step in ends:
        earlier.append(decide(state, step, earlier=earlier))
    return [each.next for each in earlier]


CRASHED = attempt("running", 0, 40)
STALLED = attempt("running", 40, 40)


@pytest.mark.parametrize(
    ("status", "options", "expected", "why"),
    [
        (("done", 90), {"code": 0}, "done", "done"),
        (("done", 90), {"code": 1}, "done", "done"),
        (("done", 90), {"earlier": [CRASHED, STALLED]}, "done", "done"),
        (("pruned", 20), {"code": 0}, "done", "pruned"),
        (("preempted", 40), {"code": 75}, "again", "queued again from step 40"),
        (("preempted", 0), {"code": 75}, "again", "queued again from step 0"),
        (("preempted", 40), {"message": "stopped on request (SIGUSR1)"}, "again", "stopped on request (SIGUSR1)"),
        (("running", 40), {"code": 137}, "again", "ended without a word, exit code 137"),
        (("failed", 40), {"message": "RuntimeError: NCCL"}, "again", "RuntimeError: NCCL"),
        (("running", 0), {}, "again", "queued again from step 0"),
        ((None,), {"code": 1}, "again", "ended without a word, exit code 1"),
        ((None,), {"code": 2}, "stop", "the run did not begin; the log above says why"),
        (("failed", 0), {"message": "UserError: data.jsonl:3: no JSON"}, "stop", "data.jsonl:3: no JSON"),
        (("diverged", 40), {"message": "loss is NaN"}, "stop", "diverged at step 40: loss is NaN"),
        (("diverged", 40), {"code": 0}, "stop", "diverged at step 40"),
        (("running", 40), {"earlier": [CRASHED]}, "again", "queued again from step 40"),
        (("running", 40), {"earlier": [CRASHED, STALLED]}, "stop", "2 attempts in a row came no further than step 40"),
        (("failed", 40), {"earlier": [CRASHED, STALLED], "message": "OSError: x"}, "stop", "step 40 (OSError: x)"),
        (("running", 41), {"earlier": [CRASHED, STALLED]}, "stop", "3 crashes in a row, the last at step 41"),
        (("preempted", 41), {"earlier": [CRASHED, STALLED]}, "again", "queued again from step 41"),
    ],
)
def test_what_a_run_says_of_its_end_decides(status, options, expected, why):
    found = decide(*status, **options)
    assert (found.next, why in found.why) == (expected, True), found.why


def test_crashes_that_come_no_further_stop_even_with_a_requested_stop_in_between():
    assert follow(("running", 40), ("running", 40), ("running", 40)) == ["again", "again", "stop"]
    assert follow(("running", 40), ("running", 40), ("preempted", 40), ("running", 40))[-1] == "stop"
    assert MAX_STALLED == 2


def test_a_step_forward_begins_the_count_anew():
    ends = [("running", 40), ("running", 40), ("preempted", 50), ("running", 50), ("preempted", 60), ("running", 60)]
    assert follow(*ends) == ["again"] * 6


def test_a_crash_loop_that_makes_progress_stops_all_the_same_and_a_requested_stop_ends_it():
    assert follow(("running", 10), ("failed", 20), ("running", 30)) == ["again", "again", "stop"]
    assert follow(("running", 10), ("failed", 20), ("preempted", 30), ("running", 40)) == ["again"] * 4


def test_a_run_that_is_pre_empted_again_and_again_goes_on_as_long_as_it_makes_progress():
    assert set(follow(*[("preempted", step) for step in range(1, 60)])) == {"again"}


def test_a_run_that_is_stopped_before_its_first_step_may_try_several_times_but_not_for_ever():
    assert follow(*[("preempted", 0)] * MAX_IDLE) == ["again"] * (MAX_IDLE - 1) + ["stop"]


def test_no_run_gets_more_than_its_attempts():
    earlier = [attempt("preempted", step, step + 1) for step in range(MAX_ATTEMPTS - 2)]
    assert decide("preempted", 200, earlier=earlier).next == "again"
    last = decide("preempted", 200, earlier=[*earlier, attempt("preempted", 98, 99)])
    assert (last.next, last.why) == ("stop", "100 attempts, now at step 200 (cluster.max_attempts)")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run whose job has made the folder of its first attempt."""
    run = RunDirectory(tmp_path / "my run")
    (run.slurm / "7-0").mkdir(parents=True)
    return run


def write_status(run: RunDirectory, state: str, step: int, message: str = "", *, is_earlier: bool = False) -> None:
    status = {"state": state, "step": step, "attempts": 1, "message": message}
    run.status.write_text(json.dumps(status))
    begun = (run.slurm / "7-0").stat().st_mtime_ns + (-1 if is_earlier else 1)
    os.utime(run.status, ns=(begun, begun))


def call(run: RunDirectory, capsys, *, code: int = 1, job: str = "7") -> str:
    """The word that the job script gets."""
    options = [f"--job={job}", f"--code={code}", f"--attempt={run.slurm / '7-0'}"]
    main([str(run.path), *options, f"--max-attempts={MAX_ATTEMPTS}", f"--max-crashes={MAX_CRASHES}"])
    return capsys.readouterr().out.strip()


def test_a_decision_is_one_word_for_the_script_and_a_line_for_people(run, capsys):
    write_status(run, "preempted", 40, "stopped on request (SIGTERM)")
    main(
        [
            str(run.path),
            "--job=7_3",
            "--code=75",
            f"--attempt={run.slurm / '7-0'}",
            "--max-attempts=9",
            "--max-crashes=3",
        ]
    )
    said = capsys.readouterr()
    assert said.out == "again\n"
    assert said.err == f"{run.path}: queued again from step 40 (stopped on request (SIGTERM))\n"
    (line,) = read_attempts(run)
    assert (line.job, line.state, line.from_step, line.to_step, line.code) == ("7_3", "preempted", 0, 40, 75)
    assert line.ended.endswith("+00:00")


def test_earlier_attempts_of_the_job_are_remembered(run, capsys):
    write_status(run, "running", 40)
    assert [call(run, capsys) for _ in range(3)] == ["again", "again", "stop"]
    assert [(each.from_step, each.to_step) for each in read_attempts(run)] == [(0, 40), (40, 40), (40, 40)]


def test_a_run_that_is_submitted_anew_is_decide_nextd_anew(run, capsys):
    write_status(run, "running", 40)
    assert [call(run, capsys) for _ in range(3)] == ["again", "again", "stop"]
    assert call(run, capsys, job="8") == "again"


@pytest.mark.parametrize("cut", ['{"job": "7", "ended": "20', "{"])
def test_a_line_cut_short_by_a_kill_is_dropped_and_the_next_ones_count(run, capsys, cut):
    write_status(run, "running", 40)
    assert call(run, capsys) == "again"
    with (run.slurm / "attempts.jsonl").open("a") as file:
        file.write(cut)
    assert [call(run, capsys) for _ in range(2)] == ["again", "stop"]
    assert len(read_attempts(run)) == 3


def test_an_appended_line_stands_alone_whatever_a_kill_left(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    append_line(path, {"a": "größe"})
    assert path.read_bytes() == '{"a": "größe"}\n'.encode()
    path.write_text('{"a": 1}\n{"b": "cu')
    append_line(path, {"c": 3})
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'
    path.write_text('{"all of it')
    append_line(path, {"c": 3})
    assert path.read_text() == '{"c": 3}\n'


def test_a_status_of_an_earlier_attempt_is_not_taken_for_this_ones(run, capsys):
    write_status(run, "done", 90, is_earlier=True)
    assert call(run, capsys, code=1) == "again", "it was to be trained on, and crashed before it began"
    assert read_attempts(run)[0].to_step == 90
    assert call(run, capsys, code=2) == "stop"


def test_a_run_that_was_done_before_is_done_if_its_command_says_so(run, capsys):
    write_status(run, "done", 90, is_earlier=True)
    assert call(run, capsys, code=0) == "done"


def test_a_users_mistake_on_the_way_back_into_a_run_stops_at_once(run, capsys):
    write_status(run, "preempted", 40, is_earlier=True)
    assert call(run, capsys, code=2) == "stop"


def test_a_users_mistake_whose_exit_code_torchrun_has_changed_stops_at_once_too(run, capsys, monkeypatch):
    monkeypatch.setenv(ATTEMPT, str(run.slurm / "7-0"))

    def main_of_a_rank(argv: list[str]) -> None:
        raise UserError("data.train: no such file.")

    with pytest.raises(SystemExit):
        run_entry(main_of_a_rank, [])
    capsys.readouterr()
    assert call(run, capsys, code=1) == "stop"
    assert read_attempts(run)[0].why == "the run did not begin; the log above says why"


def test_every_state_and_its_word_survives_its_file(run, capsys):
    write_status(run, "running", 40)
    call(run, capsys)
    (line,) = read_attempts(run)
    assert replace(line, ended="") == Attempt("7", "", "running", 0, 40, 1, "again", line.why)
