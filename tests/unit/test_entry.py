"""How an entry point ends: one message, no traceback, and an exit code that a script can act on."""

import signal
import subprocess
import sys

import pytest

from prefopt import entry
from prefopt.distributed.preemption import EXIT_CODE, Preempted
from prefopt.entry import run_entry
from prefopt.errors import ToldByRank0, UserError


def end(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[object, str]:
    """Exit code and message of an entry point that ends with an error."""

    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_entry(main, [])
    return ended.value.code, capsys.readouterr().err


def test_an_entry_point_that_ends_well_returns_and_gets_its_arguments():
    seen: list[list[str]] = []
    run_entry(seen.append, ["a", "b=c"])
    assert seen == [["a", "b=c"]]


def test_without_arguments_it_takes_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["prefopt", "a=1"])
    monkeypatch.setattr(entry.phases, "count_from_process_start", lambda: None)  # this process runs other tests too
    monkeypatch.setattr(entry.gc, "freeze", lambda: None)
    seen: list[list[str]] = []
    run_entry(seen.append)
    assert seen == [["a=1"]]


def test_a_users_mistake_is_one_message_and_2(capsys):
    assert end(capsys, UserError("data.train: no such file.")) == (2, "error: data.train: no such file.\n")


def test_what_rank_0_has_told_is_not_told_again(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert end(capsys, ToldByRank0("data.train: no such file.")) == (2, "")


def test_another_rank_says_what_rank_0_has_not_found(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(entry, "WORD_S", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert end(capsys, UserError("data.train: no such file.")) == (2, "error: data.train: no such file.\n")
    finally:
        signal.signal(signal.SIGTERM, before)


LEAVES_WORD = """
import time
from prefopt import entry
from prefopt.errors import UserError

def sleep(seconds):
    print("waits", flush=True)
    whole(60 * seconds)

def main(argv):
    raise UserError("data.train: no such file.")

whole, time.sleep = time.sleep, sleep
entry.run_entry(main, [])
"""


def test_another_rank_that_is_ended_after_rank_0_has_spoken_says_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    command = [sys.executable, "-c", LEAVES_WORD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waits\n"
        process.terminate()
        assert process.communicate() == ("", "")
    assert process.returncode == 2


def test_a_run_that_stopped_on_request_ends_with_75_and_says_that_it_goes_on(capsys):
    """EX_TEMPFAIL: a scheduler's script may run the same command again."""
    assert EXIT_CODE == 75
    code, message = end(capsys, Preempted("time limit"))
    assert code == 75
    assert message == "stopped on request (time limit); the same command goes on\n"


def test_other_ranks_stop_on_request_in_silence(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert end(capsys, Preempted("SIGTERM")) == (75, "")


def test_ctrl_c_ends_with_130(capsys):
    code, message = end(capsys, KeyboardInterrupt())
    assert code == 130
    assert message.startswith("interrupted; the same command goes on")


def test_an_error_of_ours_keeps_its_traceback():
    def main(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_entry(main, [])
