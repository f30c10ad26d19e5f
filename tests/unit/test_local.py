"""Jobs on this machine: their order, what is told, exit codes and signals; a stub stands for the runs."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from prefopt.cluster import local
from prefopt.cluster.local import run_here
from prefopt.config.choices import ClusterKind
from prefopt.config.cluster import ClusterConfig
from prefopt.process.terminal import Terminal
from prefopt.runs.jobs import LOG
from prefopt.sweeps.jobs import Job, Task

LOCAL = ClusterConfig(kind=ClusterKind.local)
DEADLINE_S = 300.0
"""After which something hangs, however busy the machine is."""
STUB = """
import json, os, pathlib, signal, sys, time

folder, *lines = sys.argv[1:]
wanted = dict(line.split("=", 1) for line in lines)
folder = pathlib.Path(folder)
folder.mkdir(parents=True, exist_ok=True)


def write(name, **values):
    (folder / f".{name}").write_text(json.dumps(values))
    (folder / f".{name}").replace(folder / name)


def status(state, **values):
    write("status.json", **{"state": state, "step": 1, "attempts": 1, "message": ""} | values)


def stop(*_):
    status("preempted")
    write("ended", at=time.monotonic())
    sys.exit(75)


signal.signal(signal.SIGTERM, stop)
write("began", at=time.monotonic(), threads=os.environ["OMP_NUM_THREADS"], argv=sys.argv[1:])
print("said by", folder.name, flush=True)
deadline = time.monotonic() + float(os.environ["DEADLINE_S"])
while "until" in wanted and not (folder.parent / wanted["until"]).exists() and time.monotonic() < deadline:
    time.sleep(0.01)
if "state" in wanted:
    status(wanted["state"], attempts=int(wanted.get("attempts", "1")))
write("ended", at=time.monotonic())
sys.exit(int(wanted.get("code", "0")))
"""
FOR_EVER = "until=never"


class Machine:
    """Runs jobs of the stub and keeps what is said of them.

    Attributes:
        root: Folder of the runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.console = Terminal(record=True, width=200, soft_wrap=True, force_terminal=False)

    def job(self, **runs: str) -> Job:
        """An array with one task per name; its lines in a string."""
        tasks = {
            index: Task(self.root / name, [str(self.root / name), *lines.split()])
            for index, (name, lines) in enumerate(runs.items())
        }
        return Job("sweep", self.root, "stub_run", tasks, is_array=True)

    def run(self, *jobs: Job, cluster: ClusterConfig = LOCAL) -> int:
        return run_here(jobs, cluster, self.console)

    def said(self) -> str:
        return self.console.export_text(clear=False)

    def read(self, name: str, file: str) -> dict:
        return json.loads((self.root / name / file).read_text())

    def wait_for(self, name: str, file: str = "began") -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not (self.root / name / file).exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Whatever started the tests may have had signals ignored, as nohup does."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "stub_run.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("DEADLINE_S", str(DEADLINE_S))
    return Machine(tmp_path / "runs")


def signal_when(began, number: int, then=lambda: None) -> threading.Thread:
    """Signals this process once something holds."""

    def send() -> None:
        began()
        os.kill(os.getpid(), number)
        then()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_jobs_run_one_after_the_other_and_their_tasks_too(machine):
    assert machine.run(machine.job(reference=""), machine.job(a="", b="")) == 0
    times = [machine.read(name, file)["at"] for name in ("reference", "a", "b") for file in ("began", "ended")]
    assert times == sorted(times)
    assert [line.split()[:2] for line in machine.said().splitlines()] == [
        ["1/1", "reference"], ["1/2", "a"], ["2/2", "b"],
    ]  # fmt: skip


def test_so_many_tasks_run_at_a_time_and_share_the_threads(machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    start, started = local._start, []

    def count(*arguments):
        assert sum(item.process.poll() is None for item in started) < 2
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(local, "_start", count)
    job = machine.job(a="until=b/began", b="until=a/began", c="")
    assert machine.run(Job(job.name, job.folder, job.module, job.tasks, is_array=True, parallel=2)) == 0
    began = {name: machine.read(name, "began") for name in "abc"}
    for one, other in ("ab", "ba"):
        assert began[one]["at"] < machine.read(other, "ended")["at"]
    assert began["c"]["at"] > min(machine.read(name, "ended")["at"] for name in "ab")
    assert [began[name]["threads"] for name in "abc"] == ["3", "3", "3"]


def test_a_number_of_threads_that_is_set_is_kept(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    machine.run(machine.job(a=""))
    assert machine.read("a", "began")["threads"] == "5"


def test_a_task_that_fails_leaves_the_others_alone_and_its_log_is_named(machine):
    assert machine.run(machine.job(a="code=3", b="")) == 1
    assert machine.read("b", "ended")
    assert f"failed: {machine.root / 'a'}, see {machine.root / 'a' / 'slurm' / LOG}" in machine.said()
    assert "failed (exit code 3)" in machine.said()
    assert (machine.root / "a" / "slurm" / LOG).read_text() == "said by a\n"


def test_a_job_whose_predecessor_failed_is_left_out(machine):
    assert machine.run(machine.job(reference="code=1"), machine.job(a="")) == 1
    assert not (machine.root / "a").exists()


def test_a_single_run_shows_what_it_prints_and_writes_no_log(machine, capfd):
    job = machine.job(voice="")
    assert machine.run(Job(job.name, job.folder, job.module, job.tasks)) == 0
    assert capfd.readouterr().out == "said by voice\n"
    assert not (machine.root / "voice" / "slurm").exists()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("code=75 state=preempted", 75),
        ("code=75", 75),
        ("code=1 state=preempted", 75),
        ("code=1 state=failed", 1),
        ("code=0 state=done", 0),
    ],
)
def test_a_run_that_stops_by_its_own_time_limit_is_no_failure(machine, ends, expected):
    assert machine.run(machine.job(a=ends)) == expected
    assert ("failed" in machine.said()) == (expected == 1)


def test_a_crash_of_a_run_that_was_stopped_before_is_a_failure(machine):
    (machine.root / "a").mkdir(parents=True)
    (machine.root / "a" / "status.json").write_text('{"state": "preempted", "attempts": 1}')
    assert machine.run(machine.job(a="code=1")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_runs_save_and_starts_no_other(machine, number):
    before = signal.getsignal(number)
    sender = signal_when(lambda: machine.wait_for("a"), number)
    assert machine.run(machine.job(a=FOR_EVER, b=""), machine.job(c="")) == 75
    sender.join()
    assert machine.read("a", "status.json")["state"] == "preempted"
    assert not (machine.root / "b").exists()
    assert not (machine.root / "c").exists()
    assert "stopped on request; the same command goes on" in machine.said()
    assert "failed" not in machine.said()
    assert signal.getsignal(number) == before


def test_a_hang_up_that_the_shell_ignores_is_ignored(machine):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sender = signal_when(lambda: machine.wait_for("a"), signal.SIGHUP, then=(machine.root / "sent").touch)
        assert machine.run(machine.job(a="until=sent")) == 0
        sender.join()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_being_started_when_the_signal_comes_is_told_as_well(machine, monkeypatch):
    start = local._start

    def interrupted(*arguments):
        item = start(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return item

    monkeypatch.setattr(local, "_start", interrupted)
    assert machine.run(machine.job(a=FOR_EVER)) == 75
    saved, ended = (machine.root / "a" / name for name in ("status.json", "ended"))
    assert saved.exists() or not ended.exists(), "it saved, or died before it could"


def test_paths_are_shown_as_they_are(machine):
    machine.root = machine.root / "[bold]" / "[/x]"
    machine.run(machine.job(**{"[red]": "code=1"}))
    assert f"failed: {machine.root / '[red]'}, see " in machine.said()
    assert "1/1  [red]  failed" in machine.said()


def test_several_ranks_are_started_by_torchrun(machine, monkeypatch):
    commands = []

    class Ended:
        returncode, pid = 0, 0

        def __init__(self, command, **_):
            commands.append(command[1:])

        def poll(self):
            return 0

    monkeypatch.setattr(local.subprocess, "Popen", Ended)
    cluster = ClusterConfig(kind=ClusterKind.local, ranks_per_node=3, margin_s=60)
    machine.run(machine.job(a="x=1"), cluster=cluster)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "--shutdown-timeout=60"]
    assert commands == [[*torchrun, "-m", "stub_run", str(machine.root / "a"), "x=1"]]
