"""How an entry point ends: one message, no traceback, and an exit code that a script can act on."""

import errno
import signal
import subprocess
import sys

import pytest

from prefopt.distributed import entry, group
from prefopt.distributed.entry import run_entry
from prefopt.distributed.preemption import EXIT_CODE, Preempted
from prefopt.process import output
from prefopt.process.errors import EndedError, ToldByRank0, UserError


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
from prefopt.distributed import entry
from prefopt.process.errors import UserError

def sleep(seconds):
    print("waits", flush=True)
    for _ in range(600):  # a signal that comes just before a sleep does not cut it short
        whole(seconds / 10)

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


def test_ctrl_c_ends_with_130_and_promises_to_go_on_only_where_a_run_does(capsys):
    assert end(capsys, KeyboardInterrupt()) == (130, "interrupted\n")
    code, message = end(capsys, KeyboardInterrupt("the same command goes on"))
    assert (code, message) == (130, "interrupted; the same command goes on\n")


def test_what_nobody_foresaw_is_one_line_and_1_and_its_traceback_lies_in_a_file_that_is_named(capsys, cache):
    code, message = end(capsys, RuntimeError("a bug\nin two lines"))
    assert code == 1
    told, how = message.splitlines()
    assert told == "error: RuntimeError: a bug"
    (log,) = (cache / "errors").glob("prefopt-error-*.log")
    assert (
        how == f"Its traceback is in {log}. If it is a mistake of prefopt, report it with that file and this command."
    )
    text = log.read_text()
    log.unlink()
    assert "Traceback (most recent call last):" in text
    assert text.endswith("RuntimeError: a bug\nin two lines\n\n")


def test_the_traceback_of_a_run_is_in_its_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_folder", tmp_path)
    for _ in range(2):
        _, message = end(capsys, ZeroDivisionError("division by zero"))
        assert f"Its traceback is in {tmp_path / 'error.log'}." in message
    assert (tmp_path / "error.log").read_text().count("Traceback (most recent call last):") == 2


def test_a_traceback_that_can_be_kept_nowhere_is_said(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(output.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    code, message = end(capsys, RuntimeError("a bug"))
    assert (code, message.splitlines()[1][:38]) == (1, "Its traceback could be kept nowhere. I")


def test_a_run_that_ended_badly_for_a_known_reason_is_one_message_and_1(capsys):
    assert end(capsys, EndedError("step 3: the loss is not finite")) == (1, "error: step 3: the loss is not finite\n")


def test_what_rank_0_has_failed_of_is_its_to_say(capsys):
    assert end(capsys, group.RankLostError(group.FAILED)) == (1, "")


def test_what_a_file_system_refuses_is_the_users_to_mend(capsys):
    error = PermissionError(errno.EACCES, "Permission denied", "/data/pairs.jsonl")
    assert end(capsys, error) == (2, "error: /data/pairs.jsonl: cannot be used (Permission denied).\n")


def test_an_exit_code_of_a_command_is_its_own(capsys):
    assert end(capsys, SystemExit(1)) == (1, "")


GLOO = (
    "[/x/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:56994. This is typically caused by a remote worker "
    "crashing. Good luck!"
)


class Store:
    """What two ranks share, here for one that plays both."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def compare_set(self, key: str, expected: str, value: str) -> None:
        self.values.setdefault(key, value)

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key].encode()


@pytest.fixture
def store(monkeypatch):
    shared = Store()
    monkeypatch.setattr(group, "num_ranks", lambda: 2)
    monkeypatch.setattr(group, "_store", lambda: shared)
    return shared


def missed() -> str:
    with pytest.raises(group.RankLostError) as error, group.during("step 2"):
        raise RuntimeError(GLOO)
    return str(error.value)


def test_a_rank_that_misses_another_says_why_that_one_failed_if_it_said_so(store, monkeypatch):
    assert missed().endswith("(Connection closed by peer [127.0.0.1]:56994)")
    monkeypatch.setattr(group, "rank", lambda: 1)
    group.leave_cause(ValueError("its own mistake\nin two lines"))
    group.leave_cause(KeyError("a later one"))
    monkeypatch.setattr(group, "rank", lambda: 0)
    assert missed() == "rank 1 failed: ValueError: its own mistake"
    assert group.cause_of(RuntimeError(GLOO)) == "rank 1 failed: ValueError: its own mistake"
    assert group.cause_of(ValueError("of this rank")) is None


@pytest.mark.parametrize("error", [group.RankLostError("in vain"), RuntimeError(GLOO), ToldByRank0("no such file")])
def test_to_have_missed_another_rank_is_no_cause(store, error):
    group.leave_cause(error)
    assert store.values == {}
