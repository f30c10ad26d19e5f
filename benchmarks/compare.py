"""Time and memory of `python -m prefopt.compare` over a sweep of a thousand runs with a thousand log events each.

python -m benchmarks.compare
python -m benchmarks.compare --runs 100 --events 500 --write

The runs are written first, untimed: a grid over beta, learning rate and loss with several seeds, each a folder as a
real run leaves it (config.yaml of the shipped study, 16 numbers in a training line, a held-out line for every 20 of
them, report.json), a few of them failed or running, some diverged. Then the whole command is timed as a process of its
own, from its start to its end: reading, ranking, the table, compare.html and compare.csv. Its peak memory is that of
its largest process. The first round reads files that were just written, so the disk is not part of any round.
"""

import argparse
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results
from tests.fake_runs import write_fake_run, write_fake_sweep

PACKAGES = ("pyyaml", "jinja2", "rich", "numpy")
BETAS = (0.01, 0.05, 0.1, 0.3, 0.5)
LOSSES = ("sigmoid", "ipo", "hinge", "robust", "apo_zero")
SEEDS = 5
LIMIT_S = 15.0
"""What the command may take for the default size on two cores."""


def write_sweep(folder: Path, num_runs: int, num_events: int) -> Path:
    """Writes a sweep of `num_runs` runs with `num_events` lines in each metrics.jsonl."""
    num_rates = -(-num_runs // (len(BETAS) * len(LOSSES) * SEEDS))
    rates = [float(f"{1e-6 * 10 ** (2 * i / max(num_rates - 1, 1)):.3g}") for i in range(num_rates)]
    grid = list(itertools.product(BETAS, LOSSES, rates, range(SEEDS)))[:num_runs]
    points = {
        f"{number:04d}": {
            "algorithm.beta": beta,
            "algorithm.loss_type": loss,
            "optim.learning_rate": rate,
            "run.seed": seed,
        }
        for number, (beta, loss, rate, seed) in enumerate(grid)
    }
    write_fake_sweep(folder, points)
    chance = random.Random(0)
    num_evaluations = num_events // 21
    for number, (name, settings) in enumerate(points.items()):
        kl = 0.03 * (settings["optim.learning_rate"] / 1e-6) ** 0.7 * (0.1 / settings["algorithm.beta"]) ** 0.4
        learned = 0.5 + 0.45 * kl / (kl + 0.1) + chance.gauss(0, 0.01)
        write_fake_run(
            folder / name,
            state={0: "failed", 1: "running"}.get(number % 50, "done"),
            settings=settings,
            accuracy=round(min(learned, 1.0) * 500) / 500,
            kl=kl * chance.uniform(0.9, 1.1),
            num_lines=num_events - num_evaluations,
            lines_per_evaluation=20,
            num_held_out=500,
            decision="do_not_ship" if kl > 1 else "ship",
            seed=number,
        )
    return folder


def measure(folder: Path) -> dict[str, Any]:
    """Runs the command once.

    Returns:
        wall_s, cpu_s (of all its processes), load_before (how many processes wanted a core in the minute before, this
        benchmark's own among them), and the sizes of what it wrote.
    """
    load, spent, begun = os.getloadavg()[0], _cpu_s(), time.perf_counter()
    command = [sys.executable, "-m", "prefopt.compare", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return {
        "wall_s": seconds,
        "cpu_s": _cpu_s() - spent,
        "load_before": load,
        "html_mb": (folder / "compare.html").stat().st_size / 1e6,
        "csv_mb": (folder / "compare.csv").stat().st_size / 1e6,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=1000, help="lines of each metrics.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/<machine>/compare.json")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        folder = write_sweep(Path(name) / "sweep", args.runs, args.events)
        read_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        rounds = [measure(folder) for _ in range(args.rounds)]
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    seconds = sorted(round_["wall_s"] for round_ in rounds)
    table = Table(title=f"compare {args.runs:,} runs x {args.events:,} log events ({read_mb:.0f} MB)")
    for column in ("fastest s", "median s", "slowest s", "cpu s", "load before", "peak MiB", "html MB", "csv MB"):
        table.add_column(column, justify="right")
    middle = seconds[len(seconds) // 2]
    cpu_s, load = (sorted(round_[key] for round_ in rounds)[len(rounds) // 2] for key in ("cpu_s", "load_before"))
    sizes = rounds[0]["html_mb"], rounds[0]["csv_mb"]
    table.add_row(*(f"{value:.1f}" for value in (seconds[0], middle, seconds[-1], cpu_s, load, peak_mib, *sizes)))
    console.print(table)
    if args.write:
        content = {
            "runs": args.runs,
            "events": args.events,
            "read_mb": read_mb,
            "cores": len(os.sched_getaffinity(0)),
            "limit_s": LIMIT_S,
            "median_s": middle,
            "median_cpu_s": cpu_s,
            "peak_mib": peak_mib,
            "rounds": rounds,
        }
        console.print(f"written: {write_results('compare', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
