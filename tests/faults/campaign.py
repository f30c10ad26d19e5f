"""Kills, stops and damages many runs at random moments: `make faults`, or `python -m tests.faults.campaign --help`.

Every point is drawn from the seed, the mode and its number alone, so `--only zero3-17` repeats one of them; where a
delay falls in the code is up to the machine.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import build_tiny_model, write_pair_files
from tests.faults.harness import MODES, PREEMPTED, Arena, Fault, Mode, after, damaged, killed, stopped
from tests.faults.places import PLACES
from tests.faults.test_damage import END, flip, truncate
from tests.zygote import Zygote

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed")
LAST_SAVE = "in a checkpoint, while the oldest goes"
"""Only the last save of these short runs has an older one to remove."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def draw(mode: Mode, number: int, seed: int, duration_s: float) -> tuple[str, Fault]:
    """The kind and the fault of one point."""
    rng = random.Random(f"{seed} {mode.name} {number}")
    kind = rng.choice(sorted(KINDS))
    return kind, KINDS[kind](rng, mode, duration_s)


def _only(rng: random.Random, mode: Mode) -> int | None:
    return rng.choice([None, *range(mode.ranks)]) if mode.ranks > 1 else None


def _kill_in_place(rng: random.Random, mode: Mode, duration_s: float) -> Fault:
    name = rng.choice(sorted(PLACES))
    call = rng.randint(1, PLACES[name].calls)
    only = _only(rng, mode) if PLACES[name].can_stop else rng.choice([None, 0])  # other ranks may have ended there
    return killed(f"{name}, call {call}", PLACES[name].at(call), only=only)


def _stop_in_place(rng: random.Random, mode: Mode, duration_s: float) -> Fault:
    name = rng.choice(sorted(name for name, place in PLACES.items() if place.can_stop))
    call, number = rng.randint(1, PLACES[name].calls), rng.choice(SIGNALS)
    codes = frozenset({PREEMPTED, 0})  # 0 of a rank that had nothing left to do: rank 0 alone writes the report
    only = _only(rng, mode)
    if only and name == LAST_SAVE:
        only = 0  # another rank has nothing left to stop there
    return stopped(f"{name}, call {call}", PLACES[name].at(call), number, only=only, codes=codes)


def _kill_at_random(rng: random.Random, mode: Mode, duration_s: float) -> Fault:
    return after(rng.uniform(0, duration_s), signal.SIGKILL, only=_only(rng, mode))


def _stop_at_random(rng: random.Random, mode: Mode, duration_s: float) -> Fault:
    return after(rng.uniform(0, duration_s), rng.choice(SIGNALS), only=_only(rng, mode))


def _damage(rng: random.Random, mode: Mode, duration_s: float) -> Fault:
    how = rng.choice([truncate, flip, Path.unlink])

    def damage(checkpoints: Path) -> None:
        files = sorted(path for path in (checkpoints / "step-8").rglob("*") if path.is_file() and path.stat().st_size)
        how(rng.choice(files))

    return damaged(f"{how.__name__} a random file", damage, END)


KINDS: dict[str, Callable[[random.Random, Mode, float], Fault]] = {
    "kill in a place": _kill_in_place,
    "kill at a random moment": _kill_at_random,
    "stop in a place": _stop_in_place,
    "stop at a random moment": _stop_at_random,
    "damaged file": _damage,
}


def main(argv: list[str]) -> int:
    """Returns the number of points that did not pass."""
    parser = argparse.ArgumentParser("tests.faults.campaign", description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="faults per mode (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="decides which faults (default: 0)")
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=list(MODES))
    parser.add_argument("--only", help="one point, such as zero3-17")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/<machine>/faults.json")
    options = parser.parse_args(argv)
    begun, points = time.monotonic(), []
    folder = Path(tempfile.mkdtemp(prefix="prefopt-faults-"))
    (folder / "pairs").mkdir()
    with Zygote() as zygote:
        arena = Arena(zygote, folder, build_tiny_model(folder / "tiny_model"), write_pair_files(folder / "pairs"))
        numbered = [(MODES[name], number) for name in options.modes for number in range(options.points)]
        if options.only is not None:
            name, _, number = options.only.rpartition("-")
            numbered = [(MODES[name], int(number))]
        for mode, number in numbered:
            point = try_point(arena, mode, number, options.seed)
            points.append(point)
            left = f"{len(points)}/{len(numbered)}, {(time.monotonic() - begun) / 60:.1f} min"
            print(
                f"{left}  {mode.name}-{number}  {point['fault']}  {point['exit_codes']}  {point['outcome']}",
                flush=True,
            )
    failed = [point for point in points if point["outcome"] != "passed"]
    content = {
        "seed": options.seed,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "table": tabulate(points),
        "points": points,
    }
    for line in content["table"]:
        print(f"{line['mode']:7} {line['fault']:24} {line['passed']:3} of {line['points']:3} passed")
    if options.write:
        from benchmarks.results import write_results

        written = write_results("faults", content, packages=PACKAGES, argv=argv, module="tests.faults.campaign")
        print(f"written: {written}")
    if not failed:
        shutil.rmtree(folder)
    return len(failed)


def try_point(arena: Arena, mode: Mode, number: int, seed: int) -> dict[str, Any]:
    """Runs one point; the folder of one that fails stays for a look."""
    arena.undisturbed(mode)
    kind, fault = draw(mode, number, seed, arena.duration_s(mode))
    folder, begun, attempts, outcome = arena.new_folder(), time.monotonic(), [], "passed"
    try:
        attempts = arena.survive(mode, fault, folder=folder)
        shutil.rmtree(folder)
    except (AssertionError, TimeoutError) as error:
        outcome = f"FAILED: {str(error).splitlines()[0]}"
        print(f"{folder}\n{error}", file=sys.stderr, flush=True)
    return {
        "mode": mode.name,
        "number": number,
        "kind": kind,
        "fault": fault.name,
        "exit_codes": attempts,
        "seconds": round(time.monotonic() - begun, 1),
        "outcome": outcome,
    }


def tabulate(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each mode and kind of fault, how many points there were and how many passed."""
    tried = Counter((point["mode"], point["kind"]) for point in points)
    passed = Counter((point["mode"], point["kind"]) for point in points if point["outcome"] == "passed")
    return [
        {"mode": mode, "fault": kind, "points": number, "passed": passed[mode, kind]}
        for (mode, kind), number in sorted(tried.items())
    ]


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
