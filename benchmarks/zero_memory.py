"""Memory of a rank under DDP and ZeRO: the tensors of a full fine-tuning step and the process, against the formula.

python -m benchmarks.zero_memory
python -m benchmarks.zero_memory --ranks 2 4 --write

Bytes per parameter of a rank of n, when the last gradient of a step is there and the optimizer has not run. In fp32 a
weight, a gradient and each of Adam's two averages take 4. DeepSpeed updates a copy of its share of the weights, in
fp32 too, where the copy is no more precise than the weights ("master"):

  stage   weights  gradients  master  Adam    sum         bf16 mixed precision, computed
  none    4        4          -       8       16          4 + 2 + 2 + 8 = 16, DeepSpeed's; see below
  1       4        4          4/n     8/n     8 + 12/n    2 + 2 + (4 + 8)/n = 4 + 12/n
  2       4        4/n        4/n     8/n     4 + 16/n    2 + (2 + 4 + 8)/n = 2 + 14/n
  3       4/n      4/n        4/n     8/n     20/n        (2 + 2 + 4 + 8)/n = 16/n

and at the end of a step: 12, 4 + 12/n, 4 + 12/n, and 20/n, as stage 3 keeps its buffer of gradients. "none" is torch's
DDP in the measurement, where bf16 is autocast over weights of fp32.

Buckets come on top. DDP has a copy of all gradients, 4 per parameter. DeepSpeed allocates reduce_bucket_size
elements, by default 5e8, which is 2 GB in fp32, for the backward (stages 1 and 2) or for the whole run (3): with a
model of fewer parameters than that, stage 2 still holds all gradients, in the bucket. So the formula is measured with
a small bucket, and the rows "as is" have prefopt's own DeepSpeed configuration and no ratio.

Tensors are counted by their distinct storages, wherever Python finds one, so activations that live count as well. The
resident memory of a process (RSS) is given less what it was after the imports: at the same moment, and its peak over
all steps, with activations, gathered weights and the temporaries of the update. Memory that is allocated and never
touched, such as most of a default bucket, is not in it. The ranks run with a fixed MALLOC_MMAP_THRESHOLD_, without
which glibc keeps much of what is freed (800 MB more in stage 3 with 77M parameters).
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.ranks import launch
from benchmarks.results import write_results
from benchmarks.shapes import ModelShape
from prefopt.process.paths import shipped

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed")
MODEL = ModelShape(12, 768, 12, 4, 64, 2048, 2048, True)
QUICK_MODEL = ModelShape(2, 128, 4, 2, 32, 352, 2048, True)
"""The vocabulary is that of the shipped tokenizer."""
BUCKETS = {False: 2_000_000, True: 20_000}
"""reduce_bucket_size in elements, and with `--quick`: a small part of the model."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""glibc gives larger blocks back as soon as they are freed."""
STAGES = (None, 1, 2, 3)
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """One training run.

    Attributes:
        ranks: Processes.
        stage: ZeRO stage, None for DDP.
        bucket: reduce_bucket_size in elements, 0 for DeepSpeed's default; without effect on DDP.
    """

    ranks: int
    stage: int | None
    bucket: int


def expected_bytes(stage: int | None, ranks: int) -> dict[str, float]:
    """Bytes per parameter and rank: fp32 at the end of the backward and of a step, and bf16 mixed precision."""
    n = ranks
    backward, step_end, mixed = {
        None: (16, 12, 16),
        1: (8 + 12 / n, 4 + 12 / n, 4 + 12 / n),
        2: (4 + 16 / n, 4 + 12 / n, 2 + 14 / n),
        3: (20 / n, 20 / n, 16 / n),
    }[stage]
    return {"backward": backward, "step_end": step_end, "bf16_mixed": mixed}


def measure(case: Case, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Trains, and returns what the rank with the most tensors had."""
    results = folder / f"{case.ranks}-{case.stage}-{case.bucket}"
    results.mkdir()
    overrides = [
        "model=hf",
        f"model.path={model}",
        f"deepspeed.stage={'null' if case.stage is None else case.stage}",
        "reference=none",
        "trainer.per_device_batch_size=1",
        f"trainer.max_steps={steps}",
        "logger=none",
        f"run.root={folder / 'runs'}",
        f"run.name={results.name}",
    ]
    arguments = [str(results), str(case.bucket), *overrides]
    environment = {"PREFOPT_CACHE": str(folder / "cache"), **MALLOC}
    launch("benchmarks.zero_memory_rank", arguments, ranks=case.ranks, **environment)
    return summarise(case, [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))])


def summarise(case: Case, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes per parameter at each moment, of the rank with the most, and the process with the largest growth."""
    parameters, expected = ranks[0]["parameters"], expected_bytes(case.stage, case.ranks)
    moments = {}
    for moment in ("backward", "step_end"):
        most = max((found["moments"][moment]["bytes"] for found in ranks), key=_without_buckets)
        measured = _without_buckets(most) / parameters
        moments[moment] = {
            "expected": expected[moment],
            "measured": measured,
            "ratio": measured / expected[moment] if case.stage is None or case.bucket else None,
            "by_category": {name: size / parameters for name, size in most.items() if name != "buckets"},
            "bucket_bytes": most["buckets"],
            "rss_growth_bytes": max(found["moments"][moment]["rss"] - found["baseline_rss"] for found in ranks),
        }
    peaks = {
        f"{phase}_peak_rss_growth_bytes": max(found[f"{phase}_peak_rss"] - found["baseline_rss"] for found in ranks)
        for phase in ("loading", "steps")
    }
    mixed = {"bf16_mixed_expected": expected["bf16_mixed"]}
    return {**asdict(case), "parameters": parameters, **moments, **peaks, **mixed}


def print_table(results: list[dict[str, Any]], console: Console) -> None:
    """Prints a line for each run."""
    parameters = results[0]["parameters"]
    title = f"bytes per parameter and rank, {parameters:,} parameters, fp32, at the end of the backward"
    caption = "RSS: growth since the imports; peak and MiB: over all steps. bf16: mixed precision, computed"
    table = Table(title=title, caption=caption, box=box.SIMPLE, collapse_padding=True)
    for column in ("n", "stage", "formula", "tensors", "ratio", "buckets", "RSS", "peak", "MiB", "bf16"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in results:
        backward, peak = row["backward"], row["steps_peak_rss_growth_bytes"]
        table.add_row(
            str(row["ranks"]),
            "DDP" if row["stage"] is None else f"{row['stage']}{'' if row['bucket'] else ' as is'}",
            f"{backward['expected']:.2f}",
            f"{backward['measured']:.2f}",
            "-" if backward["ratio"] is None else f"{backward['ratio']:.3f}",
            f"{backward['bucket_bytes'] / parameters:.2f}",
            f"{backward['rss_growth_bytes'] / parameters:.1f}",
            f"{peak / parameters:.1f}",
            f"{peak / MIB:,.0f}",
            f"{row['bf16_mixed_expected']:.1f}",
        )
    console.print(table)


def plan(ranks: list[int], bucket: int) -> list[Case]:
    """Every stage on every number of ranks with a small bucket, and ZeRO-2 and 3 as prefopt configures them."""
    cases = [Case(number, stage, bucket) for number in ranks for stage in STAGES]
    return [*cases, *(Case(ranks[0], stage, 0) for stage in (2, 3))]


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps; the last one is measured")
    parser.add_argument("--bucket", type=int, help="reduce_bucket_size in elements, instead of a small one")
    parser.add_argument("--quick", action="store_true", help="a small model, whose shares are small beside the rest")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/zero_memory.json")
    args = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(soft_wrap=True)
    shape = QUICK_MODEL if args.quick else MODEL
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = _save_model(shape, Path(folder) / "model")
        for case in plan(args.ranks, args.bucket or BUCKETS[args.quick]):
            results.append(measure(case, model, Path(folder), args.steps))
            console.print(f"measured: {case}", style="dim", highlight=False)
    print_table(results, console)
    if args.write:
        content = {"model": asdict(shape), "steps": args.steps, "results": results}
        console.print(f"written: {write_results('zero_memory', content, packages=PACKAGES, argv=argv)}")


def _save_model(shape: ModelShape, folder: Path) -> Path:
    model = shape.build(torch.device("cpu"), torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shipped("assets/base_model")).save_pretrained(folder)
    return folder


def _without_buckets(sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if name != "buckets")


if __name__ == "__main__":
    main(sys.argv[1:])
