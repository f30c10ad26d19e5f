"""One live process per run: who is refused, who takes over, and that exactly one does."""

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefopt.process.errors import UserError
from prefopt.runs import lock as module
from prefopt.runs.lock import RunLock
from prefopt.storage import lock_file as file_module
from prefopt.storage.lock_file import SILENT_AFTER_S, Holder

HOLD = """
import sys
from pathlib import Path
from prefopt.runs.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Hears this module even after `build_console` has cut prefopt's loggers off from the root."""
    logger = logging.getLogger("prefopt.runs.lock")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@contextmanager
def holder_process(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def lock_file(run: Path) -> Path:
    return run.parent / f".{run.name}.lock"


def files_beside(run: Path) -> list[str]:
    return sorted(path.name for path in run.parent.iterdir())


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def leave_lock(run: Path, age_s: float = 0.0, **changes: Any) -> None:
    """A lock as this process would have written it, but for `changes`, last touched `age_s` ago."""
    run.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(Holder.of_this_process().content)
    lock_file(run).write_text(json.dumps({**content, **changes}))
    touch(lock_file(run), age_s)


def leave_dead_lock(run: Path) -> None:
    with holder_process(run):
        pass


def touch(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_held_lock_names_its_process_and_release_leaves_nothing(run):
    with RunLock(run) as lock:
        assert lock.path == lock_file(run)
        content = read(lock.path)
        assert content["pid"] == os.getpid()
        assert content["host"] == os.uname().nodename
        assert files_beside(run) == [".first.lock"]
    assert not run.parent.exists()


def test_release_keeps_folders_that_were_there_or_are_in_use(run):
    run.parent.mkdir()
    with RunLock(run):
        pass
    assert files_beside(run) == []
    run.parent.rmdir()
    with RunLock(run):
        run.mkdir()
    assert files_beside(run) == ["first"]


def test_a_lock_can_be_taken_again_after_release(run):
    lock = RunLock(run)
    for _ in range(2):
        with lock:
            assert lock.path.exists()


def test_while_a_process_lives_another_is_refused_with_its_name(run):
    with holder_process(run) as process:
        touch(lock_file(run), 12)
        with pytest.raises(UserError) as refused:
            RunLock(run).acquire()
        message = str(refused.value)
        assert message.startswith(f"{run}: in use by process {process.pid} on host {os.uname().nodename} (since ")
        assert message.endswith(" s ago). Wait for it to end, stop it, or set run.name for another run.")
        assert 12 <= int(re.findall(r"last sign of life (\d+) s ago", message)[0]) < 300
        assert read(lock_file(run))["pid"] == process.pid
        assert files_beside(run) == [".first.lock"]


def test_a_live_process_of_this_host_keeps_its_lock_however_long_it_is_silent(run):
    with holder_process(run):
        touch(lock_file(run), 10 * SILENT_AFTER_S)
        with pytest.raises(UserError, match="in use by"):
            RunLock(run).acquire()


def test_one_process_cannot_hold_a_run_twice(run):
    with RunLock(run), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunLock(run).acquire()


def test_the_lock_of_a_killed_process_is_taken_over_and_said(run, log):
    leave_dead_lock(run)
    dead = read(lock_file(run))["pid"]
    with RunLock(run):
        assert read(lock_file(run))["pid"] == os.getpid()
        assert files_beside(run) == [".first.lock"]
    assert f"was left by process {dead} on host {os.uname().nodename} that is gone; taken over" in log.text


def test_a_killed_process_that_nobody_has_waited_for_is_gone(run):
    with holder_process(run) as process:
        process.kill()
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        with RunLock(run):
            pass


def test_another_process_with_the_same_pid_is_not_mistaken_for_the_holder(run):
    leave_lock(run)
    content = read(lock_file(run))
    with pytest.raises(UserError, match="in use by"):
        RunLock(run).acquire()
    leave_lock(run, started=content["started"] - 1)
    with RunLock(run):
        assert read(lock_file(run))["started"] == content["started"]


def test_a_process_of_another_user_that_cannot_be_looked_at_counts_as_alive(run, monkeypatch):
    leave_lock(run, pid=2**22 + 1)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(UserError, match="in use by"):
        RunLock(run).acquire()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"system": "another container of this host"}])
def test_a_holder_elsewhere_is_judged_by_its_sign_of_life_and_never_by_its_pid(run, elsewhere):
    nobody = 2**22 + 1
    leave_lock(run, age_s=100, pid=nobody, **elsewhere)
    with pytest.raises(UserError) as refused:
        RunLock(run).acquire()
    said = re.search(r"last sign of life (\d+) s ago.*If it is gone, wait (\d+) s or remove /", str(refused.value))
    silent_s, wait_s = map(int, said.groups())
    assert silent_s >= 100
    assert silent_s + wait_s == SILENT_AFTER_S
    touch(lock_file(run), SILENT_AFTER_S + 1)
    with RunLock(run):
        assert read(lock_file(run))["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("left_by", "job", "restart", "goes_on"),
    [("7", "7", "1", True), ("7", "7", "0", False), ("7", "8", "1", False), (None, None, "1", False)],
)
def test_only_a_later_restart_of_the_same_job_takes_over_at_once(run, monkeypatch, left_by, job, restart, goes_on):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    leave_lock(run, host="another", job=left_by, restart=0)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if not goes_on:
        with pytest.raises(UserError, match="in use by"):
            RunLock(run).acquire()
        return
    with RunLock(run):
        assert (read(lock_file(run))["job"], read(lock_file(run))["restart"]) == ("7", 1)


@pytest.mark.parametrize("content", ["", '{"host": "half', "[]", '{"host": "a"}', "null"])
def test_a_lock_that_cannot_be_read_holds_while_it_is_young(run, content):
    run.parent.mkdir()
    lock_file(run).write_text(content)
    with pytest.raises(UserError, match=r"in use by an unnamed process.*remove"):
        RunLock(run).acquire()
    touch(lock_file(run), SILENT_AFTER_S + 1)
    with RunLock(run):
        assert read(lock_file(run))["pid"] == os.getpid()


def test_a_slow_process_does_not_take_away_what_a_faster_one_took_over(run, monkeypatch):
    leave_dead_lock(run)
    fast, slow, claim = RunLock(run), RunLock(run), RunLock._claim
    with monkeypatch.context() as patch:

        def claim_late(self: RunLock, *arguments: Any) -> Any:
            if self is slow and fast._own is None:
                fast.acquire()
            return claim(self, *arguments)

        patch.setattr(RunLock, "_claim", claim_late)
        with pytest.raises(UserError, match="in use by"):
            slow.acquire()
    assert read(lock_file(run))["token"] == fast._own.token
    fast.release()
    assert not lock_file(run).exists()


def test_a_holder_that_wakes_up_before_it_is_replaced_keeps_its_lock(run, monkeypatch):
    leave_lock(run, age_s=SILENT_AFTER_S + 1, host="another")
    content, claim = lock_file(run).read_bytes(), RunLock._claim

    def claim_late(self: RunLock, *arguments: Any) -> Any:
        touch(lock_file(run), 0)
        return claim(self, *arguments)

    monkeypatch.setattr(RunLock, "_claim", claim_late)
    with pytest.raises(UserError, match="in use by"):
        RunLock(run).acquire()
    assert lock_file(run).read_bytes() == content
    assert files_beside(run) == [".first.lock"]


def test_a_claim_on_one_lock_is_no_right_to_replace_another(run, monkeypatch):
    leave_lock(run, pid=2**22 + 1, token="one")
    claimed, claim = [], RunLock._claim

    def claim_late(self: RunLock, path: Path, content: bytes, own: Any) -> Any:
        if not claimed:
            leave_lock(run, pid=2**22 + 1, token="two")
        claimed.append(json.loads(content)["token"])
        return claim(self, path, content, own)

    monkeypatch.setattr(RunLock, "_claim", claim_late)
    lock = RunLock(run)
    lock.acquire()
    assert claimed == ["one", "two"]
    lock.release()


def test_a_process_that_is_taking_over_keeps_others_out(run, monkeypatch):
    leave_dead_lock(run)
    first, refused, write = RunLock(run), [], module.write_bytes

    def write_late(path: Path, content: bytes) -> None:
        if path == lock_file(run):
            monkeypatch.setattr(module, "write_bytes", write)
            with pytest.raises(UserError, match="in use by") as error:
                RunLock(run).acquire()
            refused.append(error)
        write(path, content)

    monkeypatch.setattr(module, "write_bytes", write_late)
    with first:
        assert refused
        assert read(lock_file(run))["token"] == first._own.token
        assert files_beside(run) == [".first.lock"]


def test_a_process_killed_while_taking_over_does_not_block_the_next(run):
    leave_dead_lock(run)
    kill_while_replacing = HOLD.replace(
        "RunLock(Path", "from prefopt.runs import lock; import os\n"
        "write = lock.write_bytes\n"
        "lock.write_bytes = lambda path, content: os.kill(os.getpid(), 9) if path.suffix == '.lock' "
        "else write(path, content)\n"
        "RunLock(Path",
    )  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", kill_while_replacing, str(run)], check=False)
    assert ended.returncode == -9
    assert len(files_beside(run)) == 2
    with RunLock(run):
        assert files_beside(run) == [".first.lock"]


def _contend(run: Path, rounds: int, barrier: Any, wins: Any) -> None:
    for number in range(rounds):
        lock = RunLock(run)
        barrier.wait(600)
        try:
            lock.acquire()
        except UserError:
            won = False
        else:
            won = True
        wins.put((number, won))
        barrier.wait(600)
        if won:
            lock.release()
        if barrier.wait(600) == 0:
            run.parent.joinpath("dead").replace(lock_file(run))
            shutil.copy(run.parent / "template", run.parent / "dead")
        barrier.wait(600)


def test_of_many_takers_at_once_exactly_one_wins(run):
    leave_dead_lock(run)
    for name in ("template", "dead"):
        shutil.copy(lock_file(run), run.parent / name)
    num_processes, rounds = 4, 40
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(num_processes), context.Queue()
    takers = [context.Process(target=_contend, args=(run, rounds, barrier, wins)) for _ in range(num_processes)]
    for taker in takers:
        taker.start()
    outcomes = [wins.get(timeout=600) for _ in range(num_processes * rounds)]
    for taker in takers:
        taker.join(600)
    assert sorted(number for number, won in outcomes if won) == list(range(rounds))


def test_release_leaves_the_lock_of_another_process(run):
    with RunLock(run):
        other = json.dumps({**read(lock_file(run)), "token": "other"})
        lock_file(run).write_text(other)
    assert lock_file(run).read_text() == other


def test_a_forked_child_does_not_release_its_parents_lock(run, monkeypatch):
    lock = RunLock(run)
    lock.acquire()
    own = lock._own
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        lock.release()
    assert lock_file(run).exists()
    lock._own = own
    lock.release()


def test_a_holder_shows_signs_of_life(run, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.01)
    with RunLock(run) as lock:
        touch(lock.path, 1000)
        wait_until(lambda: time.time() - lock.path.stat().st_mtime < 500)
        assert lock.lost_to is None


def test_a_lock_removed_by_hand_comes_back(run, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.01)
    with RunLock(run) as lock:
        content = lock.path.read_bytes()
        lock.path.unlink()
        wait_until(lock.path.exists)
        assert lock.path.read_bytes() == content
        assert lock.lost_to is None
    assert not lock.path.exists()


def test_a_holder_learns_who_took_its_lock_over_and_leaves_it_alone(run, monkeypatch, log):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.01)
    with RunLock(run) as lock:
        aside = run.parent / "aside"
        aside.write_text(json.dumps({**read(lock.path), "pid": 77, "host": "another"}))
        touch(aside, 1000)
        aside.replace(lock.path)
        wait_until(lambda: lock.lost_to is not None)
        assert lock.lost_to == "process 77 on host another"
        assert time.time() - lock.path.stat().st_mtime > 500
    assert "this run must stop" in log.text
    assert lock.path.exists()


def test_a_sign_of_life_is_never_anothers(run, monkeypatch):
    """It is replaced just after the holder has seen that the lock is its own."""
    with RunLock(run) as lock:
        other = json.dumps({**read(lock.path), "token": "other"})

        def replace_first(of: int) -> None:
            aside = run.parent / "aside"
            aside.write_text(other)
            utime(aside, (0, 0))
            aside.replace(lock.path)
            utime(of)

        utime = os.utime
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", replace_first)
            lock._show_life(lock._own, was_silent=False)
        assert lock.path.stat().st_mtime == 0
        assert lock._show_life(lock._own, was_silent=False) is not None


def test_a_holder_that_slept_through_another_run_does_not_take_the_lock_back(run, monkeypatch):
    with RunLock(run) as lock:
        lock.path.unlink()
        assert lock._show_life(lock._own, was_silent=True) is not None
        assert not lock.path.exists()


def test_a_file_system_that_is_away_for_a_while_does_not_end_the_signs_of_life(run, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.01)
    failures = []

    def fail(path: Path, **_: Any) -> None:
        failures.append(path)
        raise OSError(errno.EIO, "away")

    with RunLock(run) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(module, "read", fail)
            wait_until(lambda: bool(failures))
        touch(lock.path, 1000)
        wait_until(lambda: time.time() - lock.path.stat().st_mtime < 500)


def test_deleting_the_runs_folder_does_not_release_it(run):
    with RunLock(run):
        run.mkdir()
        shutil.rmtree(run)
        with pytest.raises(UserError, match="in use by"):
            RunLock(run).acquire()


def test_two_names_of_one_folder_have_one_lock(run, monkeypatch):
    run.mkdir(parents=True)
    (run.parent / "alias").symlink_to(run)
    monkeypatch.chdir(run.parent)
    with RunLock(run):
        for name in ("alias", "first"):
            with pytest.raises(UserError, match="in use by"):
                RunLock(Path(name)).acquire()


def test_runs_beside_each_other_do_not_hinder_each_other(run):
    with RunLock(run), RunLock(run.with_name("second")):
        assert files_beside(run) == [".first.lock", ".second.lock"]


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/runs: cannot be written \(Not a directory\), .* set run\.root"):
        RunLock(tmp_path / "file" / "runs" / "first").acquire()


def test_a_full_disk_leaves_nothing_behind(run, monkeypatch):
    def fail(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_module, "write_bytes", fail)
    with pytest.raises(UserError, match="No space left"):
        RunLock(run).acquire()
    assert not run.parent.exists()


def test_a_folder_removed_by_another_runs_release_is_made_again(run, monkeypatch):
    write = file_module.write_bytes

    def remove_folder_first(path: Path, content: bytes) -> None:
        monkeypatch.setattr(file_module, "write_bytes", write)
        run.parent.rmdir()
        write(path, content)

    monkeypatch.setattr(file_module, "write_bytes", remove_folder_first)
    with RunLock(run):
        assert lock_file(run).exists()
    assert not run.parent.exists()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_locks_too(run, monkeypatch, code):
    def refuse(*arguments: Any) -> None:
        raise OSError(code, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(run):
        assert files_beside(run) == [".first.lock"]
        with pytest.raises(UserError, match="in use by process"):
            RunLock(run).acquire()
    assert not run.parent.exists()


def test_a_link_that_was_made_although_the_server_says_exists_is_held(run, monkeypatch):
    link = os.link

    def link_and_complain(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_and_complain)
    with RunLock(run):
        assert read(lock_file(run))["pid"] == os.getpid()
