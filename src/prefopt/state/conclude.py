"""Concludes the state of a run, and its reason, from the run's files and from Slurm."""

from dataclasses import dataclass

from prefopt.cluster.slurm import QueuedJob
from prefopt.runs.directory import State
from prefopt.runs.find import Kind
from prefopt.runs.jobs import Submitted
from prefopt.runs.read import Facts
from prefopt.state.logs import find_error, find_last_line
from prefopt.state.queue import EXECUTING, WAITING
from prefopt.state.run_status import Word
from prefopt.state.wording import clean
from prefopt.storage.lock_file import Life

CALLED_OFF = frozenset({"CANCELLED", "COMPLETED"})
"""End states of a job that need no explanation if its run has not begun."""
BAD_ENDS = {State.failed: Word.failed, State.diverged: Word.diverged}


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The state of a run, its reason, and whether a process or a job works on the run or waits for it."""

    word: Word
    why: str = ""
    is_live: bool = False


def conclude(facts: Facts, job: Submitted | None, queued: QueuedJob | None) -> Conclusion:
    """Decides the state of a run.

    Args:
        facts: Facts from its files.
        job: Its newest job; None if it was never submitted.
        queued: Slurm's entry of that job; None if Slurm does not know the job.
    """
    if facts.problem:
        return Conclusion(Word.damaged, facts.problem)
    if _has_process(facts, queued):
        return Conclusion(Word.running, "" if facts.state is State.running else _starting(facts), is_live=True)
    if queued is not None and queued.state in WAITING:
        return _conclude_waiting(facts, queued)
    if facts.state is State.done:
        return Conclusion(Word.done, _describe_done(facts))
    if facts.state is State.pruned:
        return Conclusion(Word.pruned, facts.message)
    if _has_stopped(facts, job):
        return _conclude_stopped(facts)
    if queued is not None and queued.state in EXECUTING:
        return Conclusion(Word.running, _between_attempts(facts), is_live=True)
    if facts.state is None:
        return _conclude_without_status(facts, job, queued)
    if facts.state is State.running:
        return Conclusion(Word.killed, _how_killed(facts, queued))
    if facts.state is State.preempted:
        return Conclusion(Word.preempted, facts.message)
    return Conclusion(BAD_ENDS[facts.state], facts.message or _error_of(facts) or _last_line_of(facts))


def _describe_done(facts: Facts) -> str:
    if facts.kind is Kind.reference:
        return "prepared"
    if facts.kind is Kind.sample:
        return facts.message if facts.has_result else "its pairs.jsonl is gone"
    return "" if facts.has_result else "its model/ is gone"


def _has_process(facts: Facts, queued: QueuedJob | None) -> bool:
    """Returns whether a process holds the lock. A job's process on another machine counts unless its job has left."""
    if facts.lock is None or facts.lock.life is Life.dead:
        return False
    has_left = queued is not None and queued.state not in EXECUTING
    return facts.lock.life is Life.alive or not (facts.lock.job is not None and has_left)


def _has_stopped(facts: Facts, job: Submitted | None) -> bool:
    """Returns whether the job has decided against another attempt, and the run has not changed since."""
    decision = facts.decision
    if decision is None or decision.next != "stop":
        return False
    states = ("none", facts.state and facts.state.value)  # "none": that attempt ended before the run began
    is_current = decision.state in states and decision.to_step == facts.step
    return is_current and (job is None or job.time <= decision.ended)


def _conclude_stopped(facts: Facts) -> Conclusion:
    assert facts.decision is not None
    why = facts.decision.why
    if facts.state is State.diverged:
        return Conclusion(Word.diverged, facts.message or why)
    if facts.decision.state == "none":
        return Conclusion(Word.stopped, _error_of(facts) or why)
    error = "" if facts.message else _error_of(facts)
    return Conclusion(Word.stopped, f"{why}: {error}" if error else why)


def _conclude_waiting(facts: Facts, queued: QueuedJob) -> Conclusion:
    why = f"job {queued.id} waits" + (f" ({queued.reason})" if queued.reason not in ("", "None") else "")
    if facts.state is not None:
        why = f"{why}, {_going_on(facts)}"
    return Conclusion(Word.preempted if facts.state is State.preempted else Word.queued, why, is_live=True)


def _conclude_without_status(facts: Facts, job: Submitted | None, queued: QueuedJob | None) -> Conclusion:
    """Concludes for a run without status.json: it has not begun, or it failed before it wrote the file."""
    if queued is not None and queued.state in CALLED_OFF:
        return Conclusion(Word.not_begun, f"job {queued.id}: {queued.state}")
    error = _error_of(facts)
    if queued is not None:
        return Conclusion(Word.failed, f"job {queued.id}: {queued.state}" + (f", {error}" if error else ""))
    if facts.lock is not None:
        return Conclusion(Word.killed, _how_killed(facts, queued))
    if error:
        return Conclusion(Word.failed, error)
    if job is not None:
        return Conclusion(Word.not_begun, f"Slurm does not know job {job.id} any more")
    return Conclusion(Word.not_begun, _last_line_of(facts))


def _how_killed(facts: Facts, queued: QueuedJob | None) -> str:
    job = "" if queued is None else f"job {queued.id}: {queued.state}; "
    who = "no process has its lock" if facts.lock is None else f"{facts.lock.who} is gone"
    return f"{job}{who}" + (f", goes on from step {facts.step}" if facts.step else "")


def _starting(facts: Facts) -> str:
    return "starting" if facts.state is None else f"starting again from step {facts.step}"


def _between_attempts(facts: Facts) -> str:
    return "starting" if facts.state is None else f"between two attempts, {_going_on(facts)}"


def _going_on(facts: Facts) -> str:
    """Says from which step the next attempt goes on, and what ended the last one if it was not a requested stop."""
    after = f" after: {clean(facts.message)}" if facts.message and facts.state is not State.preempted else ""
    return f"goes on from step {facts.step}{after}"


def _error_of(facts: Facts) -> str:
    return find_error(facts.log) if facts.log is not None else ""


def _last_line_of(facts: Facts) -> str:
    return find_last_line(facts.log) if facts.log is not None else ""
