"""Runs jobs on this machine: one after the other, the tasks of a job in parallel, each run in processes of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from prefopt.cluster.submission import TRAIN
from prefopt.config.cluster import ClusterConfig
from prefopt.distributed.preemption import EXIT_CODE as STOPPED
from prefopt.evaluation.report import Report
from prefopt.process.console import build_console
from prefopt.process.errors import UserError
from prefopt.process.terminal import quote
from prefopt.reports.sections import headline
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.jobs import LOG
from prefopt.runs.provenance import SAMPLE
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.jobs import Job, Task

POLL_S = 0.1


@dataclass
class _Process:
    """A run that is being executed."""

    index: int
    task: Task
    process: "subprocess.Popen[bytes]"
    log: Path
    begun: float
    num_attempts: int
    """Number of earlier attempts at the run."""

    @property
    def was_stopped(self) -> bool:
        """True if the run ended early on request, with its state saved; torchrun's own exit code is then 1."""
        status = RunDirectory(self.task.run).read_status()
        is_preempted = status.get("state") == State.preempted.value and _count_attempts(status) > self.num_attempts
        return is_preempted or self.process.returncode in (STOPPED, -signal.SIGTERM)

    @property
    def has_failed(self) -> bool:
        return self.process.returncode != 0 and not self.was_stopped


class _Stop:
    """A request to stop this process; it is passed on to the runs that are being executed."""

    def __init__(self) -> None:
        self.requested = False
        self.running: list[_Process] = []
        self.has_stopped = False
        """True once a run has stopped early, on this request or by its own time limit."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, background
        earlier = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for item in self.running:
            _terminate(item)


def _terminate(item: _Process) -> None:
    if item.process.poll() is None:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(item.process.pid, signal.SIGTERM)


def run_here(jobs: Sequence[Job], cluster: ClusterConfig, console: Console | None = None) -> int:
    """Runs jobs one after the other; returns the exit code: 0, 1 if a run failed, 75 if one stopped early on request.

    A single run prints to the terminal; of several, each writes a log.

    Args:
        jobs: In order of execution. After a job with a failed run, the rest is skipped.
        cluster: Gives the number of ranks per run.
        console: Where progress is shown.
    """
    console = console or build_console()
    stop = _Stop()
    with stop.listening():
        for job in jobs:
            shows = len(jobs) == 1 and not job.is_array
            failed = _run_job(job, cluster, console, stop, shows)
            if failed and not stop.requested:
                for task, log in failed:
                    where = "" if shows else f", see {log}"
                    console.print(f"failed: {task.run}{where}")
                return 1
            if stop.requested or stop.has_stopped:
                console.print("stopped on request; the same command goes on (a sweep: with sweep.resume=true)")
                return STOPPED
    return 0


def list_commands(job: Job, cluster: ClusterConfig) -> list[str]:
    """The commands that `run_here` would execute for a job; a remark for a search, whose settings are drawn later."""
    if job.is_search:
        return [f"# {len(job.tasks)} trials, each with settings that are drawn when it starts"]
    return [" ".join(map(quote, _command(job, task, cluster))) for task in job.tasks.values()]


def _run_job(job: Job, cluster: ClusterConfig, console: Console, stop: _Stop, shows: bool) -> list[tuple[Task, Path]]:
    """Returns the tasks that failed, with their logs."""
    waiting = list(job.tasks)
    total, done = len(waiting), 0
    failed: list[tuple[Task, Path]] = []
    while (waiting and not stop.requested) or stop.running:
        while waiting and len(stop.running) < (job.parallel or 1) and not stop.requested:
            index = waiting.pop(0)
            task = _ask(job, index) if job.is_search else job.tasks[index]
            if task is None:
                failed.append((job.tasks[index], _log(job.tasks[index])))
                continue
            stop.running.append(_start(job, index, task, cluster, shows))
            if stop.requested:  # a signal came while it started
                _terminate(stop.running[-1])
        time.sleep(POLL_S)
        for item in [item for item in stop.running if item.process.poll() is not None]:
            stop.running.remove(item)
            done += 1
            if item.has_failed:
                failed.append((item.task, item.log))
            elif item.process.returncode != 0:
                stop.has_stopped = True
            if not shows:
                _tell(console, job, item, f"{done}/{total}")
            if job.is_search:
                console.print(f"{'':>9}  {_end_trial(job, item)}")
    return failed


def _ask(job: Job, index: int) -> Task | None:
    """The run that a search draws for a task; None, with the reason in the task's log, if it draws none."""
    from prefopt.sweeps.search import ask  # imports Optuna, which only searches need

    task = None
    try:
        task, words = ask(SweepFolder(job.folder), index)
    except UserError as error:
        words = f"error: {error}"
    log = _log(job.tasks[index])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{words}\n")
    return task


def _end_trial(job: Job, item: _Process) -> str:
    """Tells the search how a run has ended, and returns a line about it."""
    from prefopt.sweeps.search import tell

    try:
        return tell(SweepFolder(job.folder), item.index, has_failed=item.has_failed)
    except UserError as error:
        return f"error: {error}"


def _log(task: Task) -> Path:
    return RunDirectory(task.run).slurm / LOG


def _command(job: Job, task: Task, cluster: ClusterConfig) -> list[str]:
    command = [sys.executable]
    if cluster.num_ranks > 1 or cluster.gpus_per_node:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={cluster.num_ranks_per_node}"]
        command += [f"--shutdown-timeout={cluster.margin_s}"]
    return [*command, "-m", job.module, *task.overrides]


def _start(job: Job, index: int, task: Task, cluster: ClusterConfig, shows: bool) -> _Process:
    log = _log(task)
    output: Any = None
    if not shows:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    threads = max(1, (os.cpu_count() or 1) // (cluster.num_ranks_per_node * (job.parallel or 1)))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    num_attempts = _count_attempts(RunDirectory(task.run).read_status())
    command = _command(job, task, cluster)
    process = subprocess.Popen(
        command, stdout=output, stderr=output and subprocess.STDOUT, env=environment, start_new_session=True
    )
    if output is not None:
        output.close()
    return _Process(index, task, process, log, time.monotonic(), num_attempts)


def _count_attempts(status: dict[str, Any]) -> int:
    return int(status.get("attempts", 0))


def _tell(console: Console, job: Job, item: _Process, place: str) -> None:
    run = RunDirectory(item.task.run)
    code, state = item.process.returncode, run.read_status().get("state", State.failed.value)
    word = f"failed (exit code {code})" if item.has_failed else state if code == 0 else "stopped"
    seconds = time.monotonic() - item.begun
    style = "bold" if item.has_failed else ""
    console.print(Text.assemble(f"{place:>9}  {run.path.name}  ", (word, style), f"  {seconds:.0f} s"))
    result = _result(run, item, job.module) if job.module in (TRAIN, SAMPLE) and not job.is_search else None
    if result:
        console.print(f"{'':>9}  {result}")


def _result(run: RunDirectory, item: _Process, module: str) -> str | None:
    """The result of a run in one line: its report's decision and decisive number, its pairs, or why it ended early."""
    if item.process.returncode != 0 or module == SAMPLE:
        status = run.read_status()
        return str(status.get("message", "")) if _count_attempts(status) > item.num_attempts else None
    report = run.read_report()
    shown = headline(Report.from_dict(report))
    return f"{shown.decision}: {shown.sentence}" if report else None
