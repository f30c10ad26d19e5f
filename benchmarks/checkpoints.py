"""What safety costs: the agreement of all ranks in every step, sealing a checkpoint, and checking it on resume.

python -m benchmarks.checkpoints
python -m benchmarks.checkpoints --write

The main job (`+experiment=dpo_brand_voice`) on two ranks with DDP, with a clock on the functions that do it. It saves
every fifth step, so that there are nine saves; what a save costs at another cadence is computed from their median.

  step        between the ends of two optimizer steps, those with a save left out
  agreement   what the end of a step adds: this rank's position noted, and the agreement whether to stop. Per step that
              of the rank that came last, since the other one waits for it, as it would in the next gradient. "alone":
              the same in a loop with nothing else, where both come at once
  save        all of it, on rank 0. Weights and optimizer would be written anyway; the rest is counted as safety. Of
              that `gather` is what the ranks tell for the manifest, and `seal` is fsync and SHA-256 of all files,
              manifest, rename and the removal of the oldest, with the waiting for the other rank
  verify      what a resume does before it loads: finds the newest checkpoint and hashes its files, each rank a share

A synthetic checkpoint of 1 GiB, one third weights and two thirds optimizer as under DDP, gives seconds per GiB of
checkpoint; of two files rank 0 hashes the larger one. "cold": read from the disk, "cached": from memory.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints_rank import MIB, Settings
from benchmarks.ranks import launch
from benchmarks.results import write_results
from prefopt.config.load import load_config
from prefopt.config.schema import TrainerConfig

PACKAGES = ("torch", "transformers", "trl", "accelerate")
EXPERIMENT = "+experiment=dpo_brand_voice"
WARM_UP = 5
"""First steps, which are slower and left out."""
PARTS = ("weights", "optimizer", "describe", "seal", "fsync", "hash", "manifest", "rotate")
"""Of a save; the last four are parts of `seal`."""
TARGET = 0.01
"""Share of the time of training that safety may take at the default cadence."""

Span = tuple[str, float, float]


def summarise(ranks: list[dict[str, Any]], settings: Settings, save_every: int) -> dict[str, Any]:
    """Medians of what the ranks measured, and shares of a step's time."""
    spans: list[list[Span]] = [found["spans"] for found in ranks]
    steps = find_step_times(spans[0])
    step_s = statistics.median(steps)
    agreement = summarise_agreement(ranks, step_s)
    saves = summarise_saves(spans[0])
    default, main_job = TrainerConfig().save_every, load_config([EXPERIMENT]).trainer.save_every
    verification = [max(seconds) for seconds in zip(*(found["verifications_s"] for found in ranks), strict=True)]
    return {
        "ranks": len(ranks),
        "step_s": step_s,
        "num_steps": len(steps),
        "agreement": agreement,
        "saves": {"every": save_every, **saves, "checkpoint_bytes": ranks[0]["checkpoint_bytes"]},
        "cadences": [
            {
                "save_every": cadence,
                "save_share": saves["save_s"] / (cadence * step_s),
                "added_share": saves["added_s"] / (cadence * step_s),
                "safety_share": saves["added_s"] / (cadence * step_s) + agreement["share_of_step"],
            }
            for cadence in (default, main_job)
        ],
        "verification_s": statistics.median(verification),
        "num_verifications": len(verification),
        "synthetic": summarise_synthetic(ranks, settings),
    }


def find_step_times(spans: list[Span]) -> list[float]:
    """Seconds between the ends of two steps, without those that saved or evaluated."""
    ends = [begun for name, begun, _ in spans if name == "end_step"][WARM_UP:]
    others = [begun for name, begun, _ in spans if name in ("save", "evaluate")]
    return [
        second - first
        for first, second in itertools.pairwise(ends)
        if not any(first <= begun < second for begun in others)
    ]


def summarise_agreement(ranks: list[dict[str, Any]], step_s: float) -> dict[str, Any]:
    """What every step pays, in the run and alone."""
    ends, exchanges, positions = (
        [[seconds for name, _, seconds in found["spans"] if name == wanted] for found in ranks]
        for wanted in ("end_step", "agree", "position")
    )
    end_s = statistics.median([min(seconds) for seconds in zip(*ends, strict=True)][WARM_UP:])
    exchange_s = statistics.median([min(seconds) for seconds in zip(*exchanges, strict=True)][WARM_UP:])
    position_s = statistics.median(positions[0])
    per_step = len(positions[0]) / len(ends[0])
    total_s = end_s + (per_step - 1) * position_s  # the end of a step notes one of them
    return {
        "end_of_step_us": 1e6 * end_s,
        "exchange_us": 1e6 * exchange_s,
        "position_us": 1e6 * position_s,
        "positions_per_step": per_step,
        "per_step_us": 1e6 * total_s,
        "share_of_step": total_s / step_s,
        "num_steps": len(ends[0]) - WARM_UP,
        "alone_us": 1e6 * statistics.median(ranks[0]["agreements_s"]),
        "num_alone": len(ranks[0]["agreements_s"]),
    }


def summarise_saves(spans: list[Span]) -> dict[str, Any]:
    """Medians of a save and its parts on rank 0."""
    saves = [split_save(spans, begun, seconds) for name, begun, seconds in spans if name == "save"]
    medians = {name: statistics.median(save[name] for save in saves) for name in saves[0]}
    return {**medians, "num_saves": len(saves)}


def split_save(spans: list[Span], begun: float, seconds: float) -> dict[str, float]:
    """Seconds of a save and of its parts, which lie in it."""
    parts = {
        part: sum(taken for name, at, taken in spans if name == part and begun <= at < begun + seconds)
        for part in PARTS
    }
    added = seconds - parts["weights"] - parts["optimizer"]
    return {"save_s": seconds, "added_s": added, **{f"{part}_s": taken for part, taken in parts.items()}}


def summarise_synthetic(ranks: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Seconds per GiB of checkpoint, medians of the rounds."""
    gib = settings.synthetic_mib / 1024
    rounds = range(settings.rounds)
    slowest = {
        name: statistics.median(max(found["synthetic"][i][name] for found in ranks) / gib for i in rounds)
        for name in ("save_s", "cached_s", "cold_s")
    }
    parts = {
        part: statistics.median(
            sum(taken for name, _, taken in ranks[0]["synthetic"][i]["spans"] if name == part) / gib for i in rounds
        )
        for part in ("seal", "fsync", "hash")
    }
    return {
        "gib": gib,
        "num_rounds": settings.rounds,
        "save_s_per_gib": slowest["save_s"],
        **{f"{part}_s_per_gib": seconds for part, seconds in parts.items()},
        "verify_cached_s_per_gib": slowest["cached_s"],
        "verify_cold_s_per_gib": slowest["cold_s"],
        "hash_gib_per_s_and_rank": 2 / 3 / parts["hash"],  # rank 0 hashes the optimizer
    }


def print_tables(result: dict[str, Any], console: Console) -> None:
    """Prints what a step, a save and a resume pay."""
    agreement, saves, synthetic = result["agreement"], result["saves"], result["synthetic"]
    step_s, mib = result["step_s"], saves["checkpoint_bytes"] / MIB
    table = Table(title=f"{EXPERIMENT}, {result['ranks']} ranks", box=box.SIMPLE)
    for column in ("what", "median", "n", "of a step"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("step", f"{step_s:.3f} s", str(result["num_steps"]), "")
    rows = [
        ("agreement, end of step", agreement["end_of_step_us"], agreement["num_steps"]),
        ("  of it the exchange", agreement["exchange_us"], agreement["num_steps"]),
        ("agreement and positions, per step", agreement["per_step_us"], agreement["num_steps"]),
        ("agreement alone", agreement["alone_us"], agreement["num_alone"]),
    ]
    for name, microseconds, number in rows:
        table.add_row(name, f"{microseconds:,.0f} us", str(number), f"{microseconds / 1e6 / step_s:.3%}")
    labels = {"save": f"save ({mib:.0f} MiB)", "weights": "  weights", "optimizer": "  optimizer"}
    labels |= {"added": "  safety", "describe": "    gather", "seal": "    seal"}
    labels |= {name: f"      {name}" for name in PARTS[4:]}
    for part, label in labels.items():
        seconds, number = saves[f"{part}_s"], str(saves["num_saves"])
        table.add_row(label, f"{1e3 * seconds:,.1f} ms", number, f"{seconds / step_s:.1%}")
    table.add_row("verify", f"{1e3 * result['verification_s']:,.1f} ms", str(result["num_verifications"]), "")
    console.print(table)
    for row in result["cadences"]:
        console.print(
            f"a save every {row['save_every']} steps: {row['save_share']:.2%} of the steps' time; "
            f"safety, with the agreement: {row['safety_share']:.2%}",
            highlight=False,
        )
    verdict = "met" if result["cadences"][0]["safety_share"] < TARGET else "missed"
    console.print(f"target: below {TARGET:.0%} at the default cadence: {verdict}", highlight=False)
    console.print(
        f"{synthetic['gib']:g} GiB, n = {synthetic['num_rounds']}, s/GiB: seal {synthetic['seal_s_per_gib']:.2f} "
        f"(fsync {synthetic['fsync_s_per_gib']:.2f}, hash {synthetic['hash_s_per_gib']:.2f}), "
        f"verify {synthetic['verify_cached_s_per_gib']:.2f} cached, {synthetic['verify_cold_s_per_gib']:.2f} cold; "
        f"a rank hashes {synthetic['hash_gib_per_s_and_rank']:.2f} GiB/s",
        highlight=False,
    )


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=45, help="optimizer steps of the main job")
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few steps, a small synthetic checkpoint")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/checkpoints.json")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    settings = Settings(agreements=2000, verifications=9, rounds=3, synthetic_mib=1024)
    steps, save_every = args.steps, args.save_every
    if args.quick:
        settings, steps, save_every = Settings(50, 2, 1, 24), WARM_UP + 5, 3
    with tempfile.TemporaryDirectory() as folder:
        ranks = measure(Path(folder), settings, steps, save_every)
    result = summarise(ranks, settings, save_every)
    print_tables(result, console)
    if args.write:
        content = {"experiment": EXPERIMENT, "steps": steps, "settings": asdict(settings), **result}
        console.print(f"written: {write_results('checkpoints', content, packages=PACKAGES, argv=argv)}")


def measure(folder: Path, settings: Settings, steps: int, save_every: int) -> list[dict[str, Any]]:
    """Runs the ranks and returns what each of them measured."""
    overrides = [
        EXPERIMENT,
        f"trainer.max_steps={steps}",
        f"trainer.save_every={save_every}",
        "trainer.eval_every=null",
        "logger=none",
        f"run.root={folder / 'runs'}",
    ]
    arguments = [str(folder), json.dumps(asdict(settings)), *overrides]
    launch("benchmarks.checkpoints_rank", arguments, ranks=2, PREFOPT_CACHE=str(folder / "cache"))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


if __name__ == "__main__":
    main(sys.argv[1:])
