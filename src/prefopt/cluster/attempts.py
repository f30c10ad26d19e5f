"""Decides what follows an attempt at a run under Slurm: nothing, another attempt, or a stop that needs a person.

The job script calls it when the ranks have ended. It prints one word for the script, and the reason for the log.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from prefopt.distributed.entry import REFUSED, USER_ERROR, run_entry
from prefopt.process.terminal import printable
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.jobs import ATTEMPTS, Attempt, read_attempts
from prefopt.storage.files import append_line

MAX_STALLED = 2
"""Crashes without a new step in between, after which the run is not queued again."""
MAX_IDLE = 10
"""Attempts in a row without a new step, after which the run is not queued again, even if each stopped on request.

Above 1 because the reference log-probs may take several attempts."""


def main(argv: list[str]) -> None:
    """Prints done, again or stop."""
    parser = argparse.ArgumentParser("prefopt.cluster.attempts", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--job", required=True, help="Slurm's id of this job")
    parser.add_argument("--code", type=int, required=True, help="exit code of the ranks")
    parser.add_argument("--attempt", type=Path, required=True, help="folder that this attempt made before its ranks")
    parser.add_argument("--max-attempts", type=int, required=True)
    parser.add_argument("--max-crashes", type=int, required=True)
    options = parser.parse_args(argv)
    run = RunDirectory(options.run)
    earlier = [attempt for attempt in read_attempts(run) if attempt.job == options.job]  # submitted anew, decided anew
    status = run.read_status()
    code = USER_ERROR if (options.attempt / REFUSED).exists() else options.code
    if code != 0 and not _wrote_status(run, options.attempt):
        status = {"step": status.get("step")}
    attempt = decide_next(status, earlier, options.job, code, options.max_attempts, options.max_crashes)
    append_line(run.slurm / ATTEMPTS, asdict(attempt))
    print(printable(f"{run.path}: {attempt.why}"), file=sys.stderr)
    print(attempt.next)


def _wrote_status(run: RunDirectory, attempt: Path) -> bool:
    """True if this attempt wrote status.json, by the file system's time stamps."""
    return run.status.exists() and run.status.stat().st_mtime_ns >= attempt.stat().st_mtime_ns


def decide_next(
    status: dict[str, Any], earlier: list[Attempt], job: str, code: int, max_attempts: int, max_crashes: int
) -> Attempt:
    """Decides what follows an attempt.

    Args:
        status: Content of status.json; without a state if the attempt failed and did not write it.
        earlier: The earlier attempts of this job, oldest first.
        job: Slurm's id of the job.
        code: Exit code of the ranks.
        max_attempts: Number of attempts after which no other follows.
        max_crashes: Number of crashes in a row, with or without progress, after which no attempt follows.
    """
    state = str(status.get("state", "none"))
    from_step = earlier[-1].to_step if earlier else 0
    to_step = int(status.get("step") or 0)
    idle = [] if to_step > from_step else [state, *_last_states(earlier, lambda a: a.to_step <= a.from_step)]
    stalled = sum(each != State.preempted.value for each in idle)
    is_crash = state != State.preempted.value
    crashes = 1 + len(_last_states(earlier, lambda a: a.state != State.preempted.value)) if is_crash else 0
    message = str(status.get("message") or "")

    def end(following: str, why: str) -> Attempt:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Attempt(job, now, state, from_step, to_step, code, following, why)

    if state in (State.done.value, State.pruned.value):
        return end("done", state)
    if state == "none" and code == USER_ERROR:
        return end("stop", "the run did not begin; the log above says why")
    if state == State.diverged.value:
        return end("stop", f"diverged at step {to_step}: {message}")
    if state == State.failed.value and message.startswith("UserError"):
        return end("stop", message)
    if stalled >= MAX_STALLED or len(idle) >= MAX_IDLE:
        return end("stop", f"{len(idle)} attempts in a row came no further than step {to_step} ({message or state})")
    if crashes >= max_crashes:
        return end("stop", f"{crashes} crashes in a row, the last at step {to_step} ({message or state})")
    if len(earlier) + 1 >= max_attempts:
        return end("stop", f"{max_attempts} attempts, now at step {to_step} (cluster.max_attempts)")
    return end("again", f"queued again from step {to_step} ({message or f'ended without a word, exit code {code}'})")


def _last_states(attempts: list[Attempt], holds: Callable[[Attempt], bool]) -> list[str]:
    """The states of the latest attempts in a row for which `holds` is true, newest first."""
    return [attempt.state for attempt in takewhile(holds, reversed(attempts))]


if __name__ == "__main__":
    run_entry(main)
