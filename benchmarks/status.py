"""`prefopt status` of a sweep of a thousand runs: seconds and memory of the whole command, what it says checked first.

python -m benchmarks.status
python -m benchmarks.status --runs 200 --rounds 3 --write

  summary   the default: counts, and the 50 most urgent runs
  all       --all: every run
  json      --json: every run, for programs

The sweep lies on disk as a job array leaves it half-way: runs that are done, running (with locks of a live process),
failed with a log, pre-empted and queued again, killed, and waiting; metrics.jsonl of 100 log lines each. `squeue` is
a script that prints what the real one would of that array. Interpreter, imports and output are in the time; the files
are in the page cache.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.results import write_results
from prefopt.runs.jobs import ATTEMPTS, Attempt
from prefopt.runs.lock import RunLock
from prefopt.storage.files import append_line
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.points import Point
from tests.fake_runs import write_fake_run

PACKAGES = ("prefopt", "rich", "hydra-core", "omegaconf")
LIMIT_S = 3.0
"""What a look at 1,000 runs may take."""
JOB = "4711"
NUM_LINES, MAX_STEPS = 100, 1000
SHARES = {"done": 0.66, "running": 0.14, "failed": 0.05, "preempted": 0.04, "killed": 0.03, "queued": 0.08}
"""How many of the runs are in which state; those that remain are queued as well."""
FORMS = {"summary": [], "all": ["--all"], "json": ["--json"]}
SLURM_WORDS = {"running": "RUNNING|node07", "preempted": "PENDING|(Priority)", "queued": "PENDING|(JobArrayTaskLimit)"}
TRACEBACK = (
    "  File frame.py, line 1\n" * 200 + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
)


@dataclass(frozen=True, slots=True)
class Timing:
    """One form of the command. `cpu_s` and `peak_mib` are medians, of the process without its children's."""

    form: str
    min_s: float
    median_s: float
    cpu_s: float
    peak_mib: float
    output_bytes: int


def spread(num_runs: int) -> list[str]:
    """The state of each run, mixed as indices of an array are not."""
    states = [state for state, share in SHARES.items() for _ in range(int(share * num_runs))]
    return states + ["queued"] * (num_runs - len(states))


def write_sweep(folder: Path, states: list[str]) -> None:
    """Writes the sweep, each run a copy of the one model of its state."""
    points = [Point(i, f"beta=0.{i:04d}", {"algorithm.beta": f"0.{i:04d}"}, []) for i in range(len(states))]
    SweepFolder(folder).write(points, "0" * 64, command="prefopt submit sweep=thousand cluster=slurm_1x8")
    settings = {"trainer.max_steps": MAX_STEPS}
    models = {
        state: write_fake_run(folder.parent / "models" / state, state=state, settings=settings, num_lines=NUM_LINES)
        for state in ("done", "running", "failed", "preempted")
    }
    (models["done"] / "model").mkdir()
    slurm = folder / "slurm"
    slurm.mkdir()
    lock = RunLock(models["running"])
    lock.acquire()
    alive = lock.path.read_text(encoding="utf-8")
    lock.release()
    dead = json.dumps({**json.loads(alive), "started": 1})  # of a process that had this number before
    for point, state in zip(points, states, strict=True):
        if state == "queued":
            continue
        run = folder / point.name
        shutil.copytree(models["running" if state == "killed" else state], run)
        if state in ("running", "killed"):
            (folder / f".{run.name}.lock").write_text(alive if state == "running" else dead, encoding="utf-8")
        if state == "failed":
            (slurm / f"train-{JOB}_{point.index}.log").write_text(TRACEBACK, encoding="utf-8")
            _note_failure(run, f"{JOB}_{point.index}")
    tasks = {str(point.index): str(folder / point.name) for point in points}
    log = str(slurm / "train-%A_%a.log")
    append_line(slurm / "jobs.jsonl", {"job": JOB, "kind": "train", "log": log, "tasks": tasks, "submitted": _now()})


def _note_failure(run: Path, job: str) -> None:
    """The attempt that came to nothing, and one more that comes after it."""
    step = json.loads((run / "status.json").read_text(encoding="utf-8"))["step"]
    for following in ("again", "stop"):
        attempt = Attempt(job, _now(), "failed", step, step, 1, following, "2 attempts in a row came no further")
        append_line(run / "slurm" / ATTEMPTS, asdict(attempt))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_squeue(folder: Path, states: list[str]) -> None:
    """A script in place of squeue that knows the jobs that Slurm would still know."""
    known = ((index, SLURM_WORDS[state]) for index, state in enumerate(states) if state in SLURM_WORDS)
    rows = "".join(f"{JOB}_{index}|{words}\n" for index, words in known)
    folder.mkdir()
    (folder / "rows").write_text(rows, encoding="utf-8")
    script = folder / "squeue"
    script.write_text(f"#!/bin/sh\ncat {folder}/rows\n", encoding="utf-8")
    script.chmod(0o755)


def require_right(sweep: Path, states: list[str], environment: dict[str, str]) -> None:
    """Refuses to time a command that says something else than what was written.

    Raises:
        SystemExit: The counts differ.
    """
    command = [sys.executable, "-m", "prefopt.status", "--json", str(sweep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = {word: states.count(word) for word in SHARES}
    expected["stopped"] = expected.pop("failed")
    found = json.loads(done.stdout)["groups"][0]["counts"] if done.stdout else done.stderr
    if found != {word: number for word, number in expected.items() if number}:
        raise SystemExit(f"status says {found}, written were {expected}: no time is printed")


def measure(form: str, sweep: Path, environment: dict[str, str], rounds: int) -> Timing:
    """Runs the command several times."""
    walls, cpus, peaks = [], [], []
    with tempfile.TemporaryFile() as output:
        for _ in range(rounds):
            output.seek(0)
            output.truncate()
            begun = time.perf_counter()
            command = [sys.executable, "-m", "prefopt.status", *FORMS[form], str(sweep)]
            process = subprocess.Popen(command, env=environment, stdout=output)
            _, _, usage = os.wait4(process.pid, 0)
            walls.append(time.perf_counter() - begun)
            cpus.append(usage.ru_utime + usage.ru_stime)
            peaks.append(usage.ru_maxrss / 1024)
        size = output.seek(0, os.SEEK_END)
    return Timing(form, min(walls), *map(statistics.median, (walls, cpus, peaks)), size)


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write results/<machine>/status.json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, states = Path(name), spread(args.runs)
        write_sweep(folder / "sweep", states)
        write_squeue(folder / "bin", states)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        require_right(folder / "sweep", states, environment)
        timings = [measure(form, folder / "sweep", environment, args.rounds) for form in FORMS]
    print(f"{args.runs:,} runs{'':<5}{'min s':>8}{'median s':>10}{'CPU s':>8}{'peak MiB':>10}{'output KiB':>12}")
    for row in timings:
        numbers = f"{row.min_s:>8.2f}{row.median_s:>10.2f}{row.cpu_s:>8.2f}{row.peak_mib:>10.0f}"
        print(f"{row.form:<15}{numbers}{row.output_bytes / 1024:>12.0f}")
    if args.write:
        content = {
            "runs": args.runs,
            "rounds": args.rounds,
            "lines_per_run": NUM_LINES,
            "states": {state: states.count(state) for state in SHARES},
            "limit_s": LIMIT_S,
            "results": [asdict(row) for row in timings],
        }
        print(f"written: {write_results('status', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
