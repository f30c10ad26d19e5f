"""A sweep of a thousand points, each checked, and its scripts for Slurm: seconds and memory of the whole command.

python -m benchmarks.submit
python -m benchmarks.submit --points 1000 --rounds 5 --write

Each round is a process of its own, `python -m prefopt.submit ... submit.dry_run=true`, from its start to its end:
every point of beta x learning rate is composed and checked as the run that it will be, and the scripts of the sweep
are printed. What a submission adds is a small file per point and sbatch.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results

PACKAGES = ("hydra-core", "omegaconf", "jinja2")
SWEPT_BETAS = 50
TARGET_S, TARGET_MIB = 20.0, 500.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the command.

    Attributes:
        seconds: From the start of the process to its end.
        peak_rss_mib: The most memory it had, MiB.
    """

    seconds: float
    peak_rss_mib: float


def sweep(points: int) -> list[str]:
    """Overrides of a sweep of so many points."""
    rates = points // SWEPT_BETAS
    return [
        "+experiment=dpo_brand_voice",
        "cluster=slurm_1x1",
        "submit.dry_run=true",
        f"algorithm.beta=range(1,{SWEPT_BETAS + 1})",
        f"optim.learning_rate=range(0.00001,{(rates + 0.5) * 0.00001:.7f},0.00001)",
    ]


def measure(points: int) -> Round:
    """Runs the command once.

    Raises:
        SystemExit: It failed, or its sweep does not have so many points.
    """
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "prefopt.submit", *sweep(points)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"the command ended with exit code {process.returncode}: no time is printed")
    found = re.search(r"^#SBATCH --array=0-(\d+)$", output, re.MULTILINE)
    if found is None or int(found[1]) + 1 != points:
        raise SystemExit(f"the sweep does not have {points} points: no time is printed")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return Round(seconds, usage.ru_maxrss * unit / MIB)


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help=f"of the sweep, a multiple of {SWEPT_BETAS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/<machine>/submit.json")
    args = parser.parse_args(argv)
    rounds = [measure(args.points) for _ in range(args.rounds)]
    seconds = median(each.seconds for each in rounds)
    peak = max(each.peak_rss_mib for each in rounds)
    console = Console(soft_wrap=True)
    table = Table(title=f"{args.points:,} points, {args.rounds} rounds")
    for column in ("", "measured", "target"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("seconds, median", f"{seconds:.1f}", f"{TARGET_S:g}")
    table.add_row("peak memory, MiB", f"{peak:.0f}", f"{TARGET_MIB:g}")
    console.print(table)
    if args.write:
        content = {
            "points": args.points,
            "seconds": seconds,
            "peak_rss_mib": peak,
            "target_seconds": TARGET_S,
            "target_peak_rss_mib": TARGET_MIB,
            "rounds": [asdict(each) for each in rounds],
        }
        console.print(f"written: {write_results('submit', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
