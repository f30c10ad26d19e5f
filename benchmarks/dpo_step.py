"""One optimizer step of DPO: plain TRL against prefopt, on the same weights and pairs, equality checked first.

python -m benchmarks.dpo_step
python -m benchmarks.dpo_step --rounds 12 --write
python -m benchmarks.dpo_step --data pairs.jsonl --model-folder path/to/model prefopt:assets/base_model
python -m benchmarks.dpo_step --device cuda --model 1B 8B --write

A step is the trainer's `compute_loss`, the backward pass, and AdamW with a learning rate of 0. The batches are
collated before the clock starts, and collating is timed apart. Rounds take the variants in turns in one process, after
a round that does not count. Gradient checkpointing is off and attention is SDPA; fp32 on a CPU, bf16 weights on CUDA.

  trl                   TRL's trainer, the reference model runs in every step (its default)
  trl_precompute        TRL's trainer, reference log-probs in the batch (precompute_ref_log_probs)
  trl_proxy             CPU only: as trl, with the head that TRL has on CUDA (completions only); compare with these
  trl_proxy_precompute  CPU only: as trl_precompute, with that head
  prefopt               prefopt's trainer: prompts computed once, reference log-probs from its store
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says when it starts and stops

import datasets
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.cost import PEAK_FLOPS, count_flops, count_useful_flops, measure_peak
from benchmarks.results import write_results
from benchmarks.shapes import COLUMNS, MODELS, PAIRS, Batches, ModelShape, read_pairs
from benchmarks.variants import BASELINE, OURS, Contest, Variant
from prefopt.paths import resolve

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_MODELS = {"cpu": ["small"], "cuda": ["0.5B", "1B", "3B", "8B"]}
DEFAULT_PAIRS = {
    "cpu": ["256/96", "768/100", "mixed", "zero"],
    "cuda": ["256/96", "768/100", "1024/256", "mixed", "zero"],
}
WIDTH = 112
"""Columns that a table takes."""
DATA_PAIRS, DATA_BATCHES = 8, 3
"""Pairs a batch and batches a round for real data."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one variant needs for one round, that is a step on every batch.

    Attributes:
        cpu_s: Processor time of the process, all threads, median over rounds.
        times_min: How many times as long as prefopt it takes, by minima.
        times_median: The same by medians.
        loss_difference: Relative difference from TRL's loss, largest over batches.
        gradient_difference: Norm of the difference from TRL's gradient over that gradient's norm, largest.
        tokens_computed: Tokens that pass through the policy.
        flops: Operations by torch's counter, reference forward included.
        times_flops: How many times prefopt's it is.
        peak_bytes: Memory at the peak of forward and backward on the widest batch, above the level before it:
            activations and what is temporary. Weights, gradients and optimizer are there before.
        reference_bytes: Weights of the reference, if it has to be in memory.
        collate_s: Collating the batches, minimum over rounds; in no other time.
        mfu: Share of the device's peak that useful operations reach, by the minimum; the same useful operations for
            every variant. None where the peak is not known.
    """

    variant: str
    min_s: float
    median_s: float
    cpu_s: float
    times_min: float
    times_median: float
    loss_difference: float
    gradient_difference: float
    tokens_computed: int
    flops: int
    times_flops: float
    peak_bytes: int
    times_peak_bytes: float
    reference_bytes: int
    collate_s: float
    mfu: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants on the batches of one shape.

    Attributes:
        tokens_real: Tokens of prompt + chosen and prompt + rejected, without padding.
        tokens_padded: The same with padding, which is what TRL computes.
        tokens_shared: Tokens with every prompt once and no padding.
        padding_share: 1 - tokens_real / tokens_padded.
        loss_limit: Relative difference of the loss from TRL's above which nothing would be timed.
        gradient_limit: The same for the gradient.
        store_fill_s: Computing the reference log-probs of these pairs for our store, once.
        break_even_epochs: After so many epochs with a live reference, filling the store has paid off against it.
    """

    model: str
    pairs: str
    batch_pairs: int
    batches: int
    tokens_real: int
    tokens_padded: int
    tokens_shared: int
    padding_share: float
    loss: float
    loss_limit: float
    gradient_limit: float
    store_fill_s: float
    break_even_epochs: float
    variants: list[Timing]


def compare(contest: Contest, model: str, pairs: str, batches: Batches, rounds: int) -> Comparison:
    """Checks that all variants compute the same, then measures them.

    Raises:
        DisagreementError: They do not; nothing is measured.
    """
    rows, usage = contest.add_reference(batches)
    collated = {name: [contest.collate(name, batch) for batch in rows[name]] for name in contest.variants}
    differences, loss = contest.compare(collated)
    costs = {name: measure_cost(contest, variant, collated[name]) for name, variant in contest.variants.items()}
    clocks = measure_time(contest, rows, collated, rounds)
    lengths = [tuple(len(row[name]) for name in COLUMNS) for batch in batches for row in batch]
    tokens_padded = sum(batch["input_ids"].numel() for batch in collated[BASELINE])
    tokens_shared = sum(map(sum, lengths))
    tokens_real = tokens_shared + sum(prompt for prompt, *_ in lengths)
    reference_bytes = sum(p.numel() * p.element_size() for p in contest.reference.parameters())
    ours, our_flops, our_peak = clocks[OURS], *costs[OURS]
    timings = [
        Timing(
            variant=name,
            min_s=min(clock.wall),
            median_s=statistics.median(clock.wall),
            cpu_s=statistics.median(clock.cpu),
            times_min=min(clock.wall) / min(ours.wall),
            times_median=statistics.median(clock.wall) / statistics.median(ours.wall),
            loss_difference=differences[name][0],
            gradient_difference=differences[name][1],
            tokens_computed=tokens_shared if name == OURS else tokens_padded,
            flops=costs[name][0],
            times_flops=costs[name][0] / our_flops,
            peak_bytes=costs[name][1],
            times_peak_bytes=costs[name][1] / our_peak,
            reference_bytes=reference_bytes if contest.variants[name].is_live else 0,
            collate_s=min(clock.collate),
            mfu=_mfu(contest, lengths, min(clock.wall)),
        )
        for name, clock in clocks.items()
    ]
    live_s = min(clocks[BASELINE].wall) - min(clocks["trl_precompute"].wall)
    return Comparison(
        model=model,
        pairs=pairs,
        batch_pairs=len(batches[0]),
        batches=len(batches),
        tokens_real=tokens_real,
        tokens_padded=tokens_padded,
        tokens_shared=tokens_shared,
        padding_share=1 - tokens_real / tokens_padded,
        loss=loss,
        loss_limit=contest.limits(collated)[0],
        gradient_limit=contest.limits(collated)[1],
        store_fill_s=usage.computed_s,
        break_even_epochs=usage.computed_s / live_s,
        variants=timings,
    )


class Clocks:
    """Seconds of a variant, one value a round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.collate: list[float] = []


def measure_time(
    contest: Contest, rows: dict[str, Batches], collated: dict[str, list[dict[str, Any]]], rounds: int
) -> dict[str, Clocks]:
    """Runs `rounds` rounds, in each of them every variant once on all batches, after one that does not count."""
    clocks = {name: Clocks() for name in contest.variants}
    for counted in [False] + [True] * rounds:
        for name, variant in contest.variants.items():
            begun = time.perf_counter()
            for batch in rows[name]:
                contest.collate(name, batch)
            collate_s = time.perf_counter() - begun
            with variant.active():
                _synchronize(contest.device)
                wall, cpu = time.perf_counter(), time.process_time()
                for batch in collated[name]:
                    contest.optimizer.zero_grad()
                    variant.differentiate(batch)
                    contest.optimizer.step()
                _synchronize(contest.device)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if counted:
                clocks[name].wall.append(wall)
                clocks[name].cpu.append(cpu)
                clocks[name].collate.append(collate_s)
    return clocks


def measure_cost(contest: Contest, variant: Variant, batches: list[dict[str, Any]]) -> tuple[int, int]:
    """Returns the operations of forward and backward on all batches, and the memory at the peak of the widest."""

    def work(batch: dict[str, Any]) -> Callable[[], Any]:
        return lambda: variant.differentiate(batch)

    with variant.active():
        for batch in batches[:1]:
            variant.differentiate(batch)  # leaves gradients behind, so that the peak does not hold them
        flops = sum(count_flops(work(batch)) for batch in batches)
        peak = measure_peak(work(max(batches, key=lambda batch: batch["input_ids"].numel())), contest.device)
    return flops, peak


def _mfu(contest: Contest, lengths: list[Any], seconds: float) -> float | None:
    if contest.device.type != "cuda" or contest.policy.dtype is not torch.bfloat16:
        return None
    peak = PEAK_FLOPS.get(torch.cuda.get_device_name(contest.device))
    return None if peak is None else count_useful_flops(contest.policy, lengths) / seconds / peak


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_comparison(result: Comparison, rounds: int, console: Console) -> None:
    """Prints a table with one line for each variant."""
    worst = [max(getattr(row, f"{kind}_difference") for row in result.variants) for kind in ("loss", "gradient")]
    table = Table(
        title=f"{result.model}, {result.pairs}: {result.batches} x {result.batch_pairs} pairs, {rounds} rounds",
        caption=(
            f"tokens: {result.tokens_real:,} real, {result.tokens_padded:,} padded ({result.padding_share:.0%} "
            f"padding), {result.tokens_shared:,} shared. loss {result.loss:.4f}; differences from {BASELINE}: "
            f"loss {worst[0]:.1e}, gradient {worst[1]:.1e}. store filled in {result.store_fill_s:.2f} s, "
            f"{result.break_even_epochs:.2f} epochs of a live reference"
        ),
    )
    table.min_width, console.width = WIDTH, max(WIDTH, console.width)
    for column in (
        "variant",
        "min s",
        "median s",
        "CPU s",
        "x min",
        "x median",
        "x FLOPs",
        "peak MB",
        "x peak",
        "MFU",
    ):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in result.variants:
        table.add_row(
            row.variant,
            f"{row.min_s:.3f}",
            f"{row.median_s:.3f}",
            f"{row.cpu_s:.3f}",
            f"{row.times_min:.2f}",
            f"{row.times_median:.2f}",
            f"{row.times_flops:.2f}",
            f"{row.peak_bytes / 1e6:,.1f}",
            f"{row.times_peak_bytes:.2f}",
            "" if row.mfu is None else f"{row.mfu:.1%}",
        )
    console.print(table)


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=DEFAULT_MODELS)
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and computing; default: fp32 on cpu, bf16 on cuda")
    parser.add_argument("--model", nargs="+", choices=MODELS, help="models with random weights")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, help="shapes of pairs, prompt/answer")
    parser.add_argument("--batch-pairs", type=int, help="pairs a batch, for every shape")
    parser.add_argument("--data", type=Path, help="a preference file to measure on as well")
    parser.add_argument("--model-folder", nargs="+", default=[], help="models for --data, with their tokenizers")
    parser.add_argument("--max-length", type=int, help="tokens of prompt + answer in --data; default: at most 1024")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short pairs: does it run at all?")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/dpo_step.json")
    args = parser.parse_args(argv)
    if bool(args.data) != bool(args.model_folder):
        parser.error("--data and --model-folder go together")
    _quiet()
    console = Console(soft_wrap=True)
    device = torch.device(args.device)
    dtype = DTYPES[args.dtype or ("bf16" if args.device == "cuda" else "fp32")]
    console.print(f"{args.device}, {dtype}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs", highlight=False)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model, build, shapes in _contests(args, device, dtype, folder, console):
            contest = build()
            for pairs, batches in shapes:
                try:
                    result = compare(contest, model, pairs, batches, args.rounds)
                    print_comparison(result, args.rounds, console)
                    results.append(asdict(result))
                    if args.write:
                        path = write(results, args, argv, dtype, device)
                except torch.OutOfMemoryError:
                    console.print(f"{model}, {pairs}: out of memory", highlight=False)
                    results.append({"model": model, "pairs": pairs, "error": "out of memory"})
                    contest.policy.zero_grad()
            del contest
            gc.collect()  # trainers hold each other; the next model needs the room
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if args.write:
        console.print(f"written: {path}")


def write(results: list[dict[str, Any]], args: Any, argv: list[str], dtype: torch.dtype, device: torch.device) -> Path:
    """Writes what has been measured so far, so that a later failure costs nothing of it."""
    content = {"dtype": str(dtype), "threads": torch.get_num_threads(), "rounds": args.rounds, "results": results}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return write_results("dpo_step", content, packages=PACKAGES, argv=argv, gpu=gpu)


def _contests(
    args: Any, device: torch.device, dtype: torch.dtype, folder: str, console: Console
) -> Iterator[tuple[str, Callable[[], Contest], list[tuple[str, Batches]]]]:
    """Yields name of a model, a function that builds its contest, and names and batches of pairs."""
    names = args.model or (["tiny"] if args.quick else DEFAULT_MODELS[device.type])
    shapes = args.pairs or (["quick", "quick mixed"] if args.quick else DEFAULT_PAIRS[device.type])
    for name in names:
        shape = MODELS[name]
        batches = [(pairs, PAIRS[pairs].build(shape.vocabulary, args.batch_pairs)) for pairs in shapes]
        yield name, partial(_build_random, shape, device, dtype, folder), batches
    for path in args.model_folder:
        where = resolve(path)
        tokenizer = AutoTokenizer.from_pretrained(where)
        context = AutoConfig.from_pretrained(where).max_position_embeddings
        max_length = args.max_length or min(1024, context)
        if max_length > context:
            raise SystemExit(f"--max-length {max_length}: {where.name} has positions for {context} tokens")
        pairs = args.batch_pairs or DATA_PAIRS
        real, kept = read_pairs(args.data, tokenizer, max_length=max_length, pairs=pairs, batches=DATA_BATCHES)
        console.print(f"{args.data.name}, {where.name}, at most {max_length} tokens: {kept}", highlight=False)
        yield where.name, partial(_load, where, tokenizer, device, dtype, folder), [(args.data.name, real)]


def _build_random(shape: ModelShape, device: torch.device, dtype: torch.dtype, folder: str) -> Contest:
    return Contest(shape.build(device, dtype), folder)


def _load(path: Path, tokenizer: Any, device: torch.device, dtype: torch.dtype, folder: str) -> Contest:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device)
    return Contest(model, folder, tokenizer)


def _quiet() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main(sys.argv[1:])
