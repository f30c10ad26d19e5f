"""What `prefopt status` prints: who is listed, on what terminal, and what to do next."""

import io
import shlex
import subprocess

import pytest
from rich.console import Console

from prefopt.process.terminal import quote
from prefopt.state.advice import advise
from prefopt.state.show import LIMIT, MANY, print_view
from prefopt.state.wording import clean, describe_time
from tests.run_states import (
    leave_dead_lock,
    leave_lock,
    look_at,
    submit,
    write_log,
    write_prepared,
    write_run,
    write_sweep,
)

HOSTILE = "[red]x\x1b[2J\n'$(touch bad)'\u202e \udcff"


def printed(view, width=None, everything=False):
    """What is printed to a terminal of a width, or with None to a file."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width, color_system=None, highlight=False)
    print_view(view, advise(view), console, everything=everything)
    return output.getvalue()


def commands(view):
    return [advice.command for advice in advise(view) if advice.command is not None]


def test_a_file_gets_one_whole_line_per_run_without_colours(tmp_path):
    run = write_run(tmp_path / ("long" * 30), "failed", message="ValueError: " + "why " * 60)
    write_log(run, "local.log", "x\n")
    text = printed(look_at(run))
    assert "\x1b" not in text
    (found,) = [line for line in text.splitlines() if line.startswith("failed ")]
    assert "why why" in found
    assert found.endswith(f"log {run}/slurm/local.log")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_state_is_a_word_on_a_terminal_of_any_width_and_numbers_stay(tmp_path, width):
    for state in ("done", "preempted", "failed", "diverged", "running"):
        write_run(tmp_path / state, state, step=4, lines=[{"step": 5, "time_s": 1.0, "loss": 0.25}], max_steps=10)
    leave_lock(tmp_path / "running")
    leave_dead_lock(write_run(tmp_path / "lost", "running"))
    text = printed(look_at(tmp_path), width)
    table = text.split("What to do next")[0]
    assert max(map(len, table.splitlines()[2:])) <= width
    assert [line.split()[0] for line in table.splitlines()[3:] if line and line[0] != " "] == [
        "failed",
        "diverged",
        "killed",
        "running",
        "preempted",
        "done",
    ]
    assert "5/10" in table
    assert "ETA" in table


def test_of_many_runs_only_those_that_are_not_over_are_listed_and_the_rest_is_counted(tmp_path):
    names = [f"p{index:03d}" for index in range(LIMIT + MANY)]
    sweep = write_sweep(tmp_path / "sweep", *names)
    for name in names[:5]:
        write_run(sweep / name, "done")
    write_run(sweep / names[5], "pruned")
    write_run(sweep / names[-1], "failed")
    text = printed(look_at(sweep))
    listed = [line[11:].split()[0] for line in text.splitlines() if line.startswith(("not begun", "failed", "done"))]
    assert len(listed) == LIMIT
    assert listed[0] == names[-1]  # the urgent first
    assert names[0] not in listed
    assert f"sweep  {LIMIT + MANY} points: 1 failed, {LIMIT + MANY - 7} not begun, 1 pruned, 5 done" in text
    assert f"and {MANY - 6} more; --all lists them" in text
    everything = printed(look_at(sweep), everything=True)
    assert all(f"  {name}" in everything for name in names)
    assert "more; --all" not in everything


def test_of_a_few_runs_all_are_listed(tmp_path):
    for index in range(MANY):
        write_run(tmp_path / f"r{index}", "done")
    assert printed(look_at(tmp_path)).count("\ndone ") == MANY


def test_a_reference_is_counted_apart_and_named_as_one(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a")
    write_run(sweep / "reference", "failed", message="OSError: disk")
    view = look_at(sweep)
    assert "sweep  1 point: 1 not begun; reference: 1 failed" in printed(view)
    assert "failed     reference  kind reference  OSError: disk" in printed(view)
    (row,) = [line for line in printed(view, 100).splitlines() if line.startswith("failed ")]
    assert row.split() == ["failed", "reference", "reference", "OSError:", "disk"]


def test_a_folder_that_was_only_prepared_is_told_from_a_run_whatever_its_name(tmp_path):
    alone = write_prepared(tmp_path / "runs" / "reference-like")
    view = look_at(alone)
    assert f"done       {alone}  kind reference  prepared\n" in printed(view)
    assert f"{alone}  reference: 1 done\n" in printed(view)
    assert advise(view) == []
    write_run(tmp_path / "runs" / "trained", "done")
    sweep = write_sweep(tmp_path / "runs" / "sweep", "a")
    write_prepared(sweep / "reference")
    write_prepared(sweep / "another")
    text = printed(look_at(tmp_path / "runs"))
    assert "runs  1 run: 1 done; reference: 1 done" in text
    assert "sweep  1 point: 1 not begun; reference: 2 done" in text
    assert text.count("  kind reference  prepared\n") == 3
    assert "model/ is gone" not in text


def test_a_prepared_folder_in_which_training_began_is_a_run(tmp_path):
    for name, left in (("logged", "metrics.jsonl"), ("trained", "model/config.json")):
        run = write_prepared(tmp_path / name)
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_text("")
        assert "kind reference" not in printed(look_at(run))
    killed = write_prepared(tmp_path / "killed", "running")
    assert "killed" in printed(look_at(killed))
    assert commands(look_at(killed)) == ["python -m prefopt.prepare run.name=x"]
    (killed / "provenance.json").write_text("{")
    assert "kind reference" not in printed(look_at(killed))


def test_names_and_messages_cannot_act_on_a_terminal_nor_on_a_shell(tmp_path):
    run = write_run(tmp_path / HOSTILE.replace("/", ""), "failed", message="[bold]a\x1b]0;title\x07\x9b2J\u202eb")
    write_log(run, "local.log", "x\n")
    view = look_at(run)
    for text in (printed(view), printed(view, 60)):
        text.encode("utf-8")
        assert not set(text) & set("\x1b\x07\x9b\u202e")
        assert "[red]x" in text.replace("\n", "")
        assert "[bold]a" in text
    (show,) = commands(view)
    assert "\n" not in show
    done = subprocess.run(["bash", "-c", show.replace("tail -n 50", "printf %s")], capture_output=True, check=True)
    assert done.stdout == str(view.runs[0].log).encode("utf-8", "surrogateescape")
    assert not (tmp_path / "bad").exists()


def test_what_is_cleaned_keeps_its_words_and_what_is_quoted_its_value():
    assert clean("\n\x1b[1mRuntimeError\x1b[0m: a\tb\nsecond") == "RuntimeError: a\ufffdb"
    for value in ("a b", "it's", "$HOME", "-x", "plain"):
        assert shlex.split(quote(value)) == [value]


def test_times_are_short_and_have_no_wrong_unit():
    assert [describe_time(s) for s in (0, 47.9, 3723, 71 * 3600, 76 * 3600)] == [
        "0:00",
        "0:47",
        "1:02:03",
        "71:00:00",
        "3d 04h",
    ]


def test_a_sweep_goes_on_by_the_command_that_submitted_it(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a", "b", command="prefopt submit sweep=x cluster=y")
    write_run(sweep / "a", "preempted")
    assert commands(look_at(sweep)) == ["prefopt submit sweep=x cluster=y sweep.resume=true"]
    submit(sweep, "12", {0: "a", 1: "b"}, command="prefopt submit sweep=x cluster=z sweep.resume=true")
    assert commands(look_at(sweep)) == ["prefopt submit sweep=x cluster=z sweep.resume=true"]


def test_without_its_command_the_advice_says_what_to_add(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a")
    (advice,) = advise(look_at(sweep))
    assert advice.command is None
    assert advice.what.endswith("by the command that submitted this sweep, with sweep.resume=true")


def test_a_sweep_is_not_resumed_while_a_job_of_it_is_there(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a", "b", "c", command="prefopt submit sweep=x")
    submit(sweep, "12", {0: "a", 1: "b", 2: "c"})
    write_run(sweep / "a", "failed", message="ValueError: no")
    write_run(sweep / "c", "preempted")
    first, second = advise(look_at(sweep, slurm={"12_1": "PENDING (Priority)", "12_2": "PENDING (BeginTime)"}))
    assert first.situation == "1 failed"
    assert first.what == "after job 12: mend what went wrong, then submit what is not done"
    assert (second.situation, second.command) == ("2 waiting", "squeue --start --jobs=12")


def test_points_that_follow_one_another_on_this_machine_need_no_command(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", "a", "b", command="prefopt submit sweep=x")
    write_run(sweep / "a", "running")
    leave_lock(sweep / "a")
    assert commands(look_at(sweep)) == []
    leave_dead_lock(sweep / "a")
    assert commands(look_at(sweep)) == ["prefopt submit sweep=x sweep.resume=true"]


def test_what_runs_or_waits_needs_no_command_but_those_that_follow_it(tmp_path):
    run = write_run(tmp_path / "run", "running")
    leave_lock(run)
    log = write_log(run, "local.log", "step\n")
    assert commands(look_at(run)) == [f"tail -F {log}"]


def test_a_run_goes_on_by_the_command_that_started_it(tmp_path):
    run = write_run(tmp_path / "run", "running")
    (run / "provenance.json").write_text('{"command": "python -m prefopt.train a=1"}')
    assert commands(look_at(run)) == ["python -m prefopt.train a=1"]
    submit(run, "12", command="prefopt submit a=1 cluster=y")
    assert commands(look_at(run)) == ["prefopt submit a=1 cluster=y"]


def test_a_failed_run_is_read_about_first_and_a_diverged_one_is_not_started_again(tmp_path):
    failed, diverged = write_run(tmp_path / "f", "failed"), write_run(tmp_path / "g", "diverged")
    logs = [write_log(run, "local.log", "x\n") for run in (failed, diverged)]
    situations = [(advice.situation, advice.command) for advice in advise(look_at(tmp_path))]
    assert situations == [
        ("1 failed", f"tail -n 50 {logs[0]}"),
        ("1 diverged", f"tail -n 50 {logs[1]}"),
        ("1 diverged", None),
        ("1 failed", None),
    ]


def test_results_are_compared_if_there_are_several_and_uploaded_if_they_are_only_here(tmp_path):
    run = write_run(tmp_path / "a", "done")
    assert commands(look_at(tmp_path)) == []
    assert advise(look_at(tmp_path))[0].what == f"its report is {run}/report/report.html"
    write_run(tmp_path / "b", "done")
    assert commands(look_at(tmp_path)) == [f"prefopt compare {tmp_path}"]
    session = tmp_path / "b" / "wandb" / "offline-run-20260101_000000-abc"
    session.mkdir(parents=True)
    (session / "run-abc.wandb").write_bytes(b"x" * 100)
    assert commands(look_at(tmp_path))[-1] == f"prefopt sync {tmp_path}"
    (session / "run-abc.wandb.synced").touch()
    assert commands(look_at(tmp_path)) == [f"prefopt compare {tmp_path}"]
