"""What benchmarks share that measure several parts on one file of pairs, each part in a process of its own."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.process.paths import shipped

POLL_S = 0.1


def study_words() -> list[str]:
    """Returns the words of the answers of the shipped study, each as often as it occurs."""
    study = shipped("experiments/brand_voice/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [word for line in study for turn in json.loads(line)["chosen"] for word in turn["content"].split()]


def add_arguments(parser: argparse.ArgumentParser, benchmark: str, parts: Sequence[str], *, num_pairs: int) -> None:
    """Adds the arguments of the benchmark: how many pairs or which file, and whether the results are written."""
    parser.add_argument("--pairs", type=int, default=num_pairs)
    parser.add_argument("--write", action="store_true", help=f"write results/<machine>/{benchmark}.json")
    parser.add_argument("--part", choices=parts, help="used by the benchmark itself: measure one part of --data")
    parser.add_argument("--data", type=Path, help="a file of pairs, in the place of made ones")


@contextmanager
def file_of_pairs(args: argparse.Namespace, build_rows: Callable[[int], Iterable[str]]) -> Iterator[tuple[Path, Path]]:
    """Gives the file of `--data`, or one with the lines of `build_rows`, and a folder for the cache of all parts."""
    with tempfile.TemporaryDirectory() as folder:
        data: Path = args.data or Path(folder) / "pairs.jsonl"
        if not args.data:
            with data.open("w", encoding="utf-8") as file:
                file.writelines(build_rows(args.pairs))
        yield data, Path(folder) / "cache"


def measure_part(benchmark: str, part: str, arguments: Sequence[str], **environment: str) -> dict[str, Any]:
    """Returns the numbers that a part prints as JSON in its last line, and the largest memory of its processes.

    Args:
        benchmark: The module below `benchmarks` that is run with `--part`.
        part: Its part.
        arguments: Further arguments.
        environment: Variables that its process has besides those of this one.

    Raises:
        SystemExit: The process failed.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--part", part, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_family(process.pid))
        time.sleep(POLL_S)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{part}: the process ended with {process.returncode}")
    return {"part": part, **json.loads(process.stdout.read().splitlines()[-1]), "peak_gib": peak / 2**30}


def memory_of_family(pid: int) -> int:
    """Bytes of a process and its children; a page that n processes share counts as 1/n in each."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has ended
        return 0
    return total + sum(memory_of_family(int(child)) for child in children)
