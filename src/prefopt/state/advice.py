"""Advice on what to do next: one line per situation, with a command to copy if there is one."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.process.terminal import quote
from prefopt.runs.find import Group
from prefopt.state.look import View
from prefopt.state.run_status import RunStatus, Word
from prefopt.tracking.sessions import find_sessions

RESUME = "sweep.resume=true"
SHOWN_LINES = 50
"""Lines of a log that the suggested `tail` command shows."""
GO_ON = (Word.failed, Word.stopped, Word.killed, Word.preempted, Word.not_begun)
"""States from which a run goes on if its command is run again."""
LOOK_AT_FIRST = (Word.failed, Word.stopped, Word.diverged)


@dataclass(frozen=True, slots=True)
class Advice:
    """A situation, and what to do about it.

    Attributes:
        situation: Number of runs and their state.
        what: What to do, in words.
        command: Command to type for it; None if there is none.
    """

    situation: str
    what: str
    command: str | None = None


def advise(view: View) -> list[Advice]:
    """Returns advice on all runs of a view, the most urgent of each group first."""
    return [advice for group, runs in view.groups for advice in _advise_group(group, runs)]


def _advise_group(group: Group, runs: Sequence[RunStatus]) -> list[Advice]:
    by_word = {word: [run for run in runs if run.word is word] for word in Word}
    by_word[Word.diverged] = [run for run in by_word[Word.diverged] if run.needs_person]
    advices = []
    for word in LOOK_AT_FIRST:
        logs = [run.log for run in by_word[word] if run.log is not None]
        if logs:
            command = f"tail -n {SHOWN_LINES} {quote(logs[0])}"
            advices.append(Advice(_count(by_word[word], word.value), f"read {_the_log(logs)}", command))
    if by_word[Word.diverged]:
        what = "the same settings diverge again: change them, such as a lower optim.learning_rate, for a new run"
        advices.append(Advice(_count(by_word[Word.diverged], "diverged"), what))
    by_word[Word.damaged] = [run for run in by_word[Word.damaged] if not run.place.problem]  # which says what to do
    closed = [run for run in by_word[Word.damaged] if not os.access(run.place.run.status, os.R_OK)]
    if closed:
        advices.append(Advice(_count(closed, "closed"), "you may not read them: ask their owner, or leave them out"))
    damaged = [run for run in by_word[Word.damaged] if run not in closed]
    if damaged:
        first = quote(damaged[0].place.run.status)
        what = "without that file the same command goes on from the last checkpoint"
        advices.append(Advice(_count(damaged, "damaged"), what, f"rm {first}"))
    advices += _resume(group, runs)
    advices += _wait(by_word)
    return [*advices, *_use(group, by_word[Word.done])]


def _the_log(logs: Sequence[Path]) -> str:
    return "the log" if len(logs) == 1 else f"the logs, such as the first of {len(logs)}"


def _resume(group: Group, runs: Sequence[RunStatus]) -> list[Advice]:
    """Returns advice on how to continue runs that are not done and not live."""
    starts_more = any(run.is_live and run.queue is None for run in runs)  # without Slurm, points run in turn
    idle = [
        run
        for run in runs
        if run.word in GO_ON and not run.is_live and not (starts_more and run.word is Word.not_begun)
    ]
    if not idle:
        return []
    counts = ((word, sum(run.word is word for run in idle)) for word in GO_ON)
    situation = ", ".join(f"{number} {word.value}" for word, number in counts if number)
    mend = "mend what went wrong, then " if any(run.word in LOOK_AT_FIRST for run in idle) else ""
    if group.is_sweep:
        what = f"{_until_ended(runs)}{mend}submit what is not done"
        if group.command is None:
            return [Advice(situation, f"{what} by the command that submitted this sweep, with {RESUME}")]
        return [Advice(situation, what, _with_resume(group.command))]
    first, command = next(((run, found) for run in idle if (found := _command_of(run))), (idle[0], None))
    what = f"{mend}the same command goes on"
    if len(idle) > 1:
        what += " for each" + (f", such as for {quote(first.place.name)}" if command is not None else "")
    return [Advice(situation, what, command)]


def _until_ended(runs: Iterable[RunStatus]) -> str:
    """Returns what to wait for before a sweep is resumed: its jobs that still wait or run."""
    live = [run for run in runs if run.is_live]
    numbers = sorted({run.place.job.number for run in live if run.place.job is not None and run.queue is not None})
    if numbers:
        return f"after job {', '.join(numbers)}: "
    return "when the others have ended: " if live else ""


def _wait(by_word: dict[Word, list[RunStatus]]) -> list[Advice]:
    """Returns advice on how to follow runs that run or wait."""
    advices = []
    logs = [run.log for run in by_word[Word.running] if run.log is not None]
    if logs:
        advices.append(Advice(_count(by_word[Word.running], "running"), "follow one", f"tail -F {quote(logs[0])}"))
    waiting = [run for run in (*by_word[Word.queued], *by_word[Word.preempted]) if run.is_live]
    numbers = sorted({run.place.job.number for run in waiting if run.place.job is not None}, key=int)
    if numbers:
        command = f"squeue --start --jobs={','.join(numbers)}"
        advices.append(Advice(f"{len(waiting)} waiting", "see when Slurm means to start them", command))
    return advices


def _use(group: Group, done: Sequence[RunStatus]) -> list[Advice]:
    """Returns advice on what to do with finished runs."""
    results = [run for run in done if run.place.kind.trains]
    if not results:
        return []
    where = [group.path] if group.path is not None else [run.place.run.path for run in results]
    folders = " ".join(quote(path) for path in where)
    advices = []
    if len(results) > 1:
        advices.append(Advice(_count(results, "done"), "compare them", f"prefopt compare {folders}"))
    else:
        report = results[0].place.run.report / "report.html"
        advices.append(Advice("1 done", f"its report is {quote(report)}"))
    if any(session.is_pending() for run in results for session in find_sessions(run.place.run.path)):
        advices.append(Advice("offline", "upload to W&B what was recorded offline", f"prefopt sync {folders}"))
    return advices


def _with_resume(command: str) -> str:
    """Turns the command that submitted a sweep into one that resumes it."""
    return command if RESUME in command.split() else f"{command} {RESUME}"


def _command_of(run: RunStatus) -> str | None:
    """Returns the command that continues a run: the one that submitted it, else the one that started it."""
    job = run.place.job
    if job is not None and job.command is not None:
        return job.command if job.id == job.number else _with_resume(job.command)
    try:
        command = run.place.run.read_provenance().get("command")
    except (OSError, ValueError, AttributeError):
        return None
    return command if isinstance(command, str) else None


def _count(runs: Sequence[RunStatus], word: str) -> str:
    return f"{len(runs)} {word}"
