"""One optimizer step of DPO: plain TRL against prefopt, on the same weights and pairs, equality checked first.

python -m benchmarks.dpo_step
python -m benchmarks.dpo_step --rounds 12 --write
python -m benchmarks.dpo_step --data pairs.jsonl --model-folder path/to/model prefopt:assets/base_model
python -m benchmarks.dpo_step --device cuda --model 1B 8B --peft none lora --write

A step is the trainer's `compute_loss`, the backward pass, and AdamW with a learning rate of 0. The batches are
collated before the clock starts, and collating is timed apart. Rounds take the variants in turns in one process, after
a round that does not count. Gradient checkpointing is off and attention is SDPA; fp32 on a CPU, bf16 weights on CUDA.
With `--peft lora` adapters are trained on a frozen base, which is the reference too. In half precision all variants
are first compared with plain TRL in float32 (`benchmarks.gate`). Where a variant disagrees nothing is timed, and the
command fails after the other shapes; what does not fit into memory is told.

  trl                   TRL's trainer, the reference model runs in every step (its default)
  trl_precompute        TRL's trainer, reference log-probs in the batch (precompute_ref_log_probs)
  trl_proxy             CPU only: as trl, with the head that TRL has on CUDA (completions only); compare with these
  trl_proxy_precompute  CPU only: as trl_precompute, with that head
  prefopt               prefopt's trainer: prompts computed once, reference log-probs from its store
  ..._liger             CUDA only, where liger-kernel is installed: the same with Liger's layer kernels in all models
"""

import argparse
import gc
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says when it starts and stops

import datasets
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.gate import DisagreementError
from benchmarks.results import write_results
from benchmarks.shapes import MODELS, PAIRS, Batches, ModelShape, read_pairs
from benchmarks.step_timing import Comparison, compare
from benchmarks.variants import BASELINE, OURS, Contest
from prefopt.config.choices import PeftMethod
from prefopt.process.paths import resolve

BENCHMARK = "dpo_step"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_MODELS = {"cpu": ["small"], "cuda": ["0.5B", "1B", "3B", "8B"]}
DEFAULT_PAIRS = {
    "cpu": ["256/96", "768/100", "mixed", "zero"],
    "cuda": ["256/96", "768/100", "1024/256", "mixed", "zero"],
}
PEFT = [PeftMethod.none.value, PeftMethod.lora.value]
WIDTH = 124
"""Columns that a table takes."""
DATA_PAIRS, DATA_BATCHES = 8, 3
"""Pairs a batch and batches a round for real data."""


def print_comparison(result: Comparison, rounds: int, console: Console) -> None:
    """Prints a table with one line for each variant."""
    model = result.model if result.trained == "none" else f"{result.model} {result.trained}"
    table = Table(
        title=f"{model}, {result.pairs}: {result.batches} x {result.batch_pairs} pairs, {rounds} rounds",
        caption=(
            f"tokens: {result.tokens_real:,} real, {result.tokens_padded:,} padded ({result.padding_share:.0%} "
            f"padding), {result.tokens_shared:,} shared. loss {result.loss:.4f}; {describe_errors(result)}. store "
            f"filled in {result.store_fill_s:.2f} s, {result.break_even_epochs:.2f} epochs of a live reference"
        ),
    )
    table.min_width, console.width = WIDTH, max(WIDTH, console.width)
    has_host = result.variants[0].host_s is not None
    columns = [
        "min s",
        "median s",
        "host s" if has_host else "CPU s",
        "x min",
        "x median",
        "x FLOPs",
        "peak MB",
        "x peak",
    ]
    columns += ["pairs/s", "tokens/s", *(["launches", "waits", "MFU"] if has_host else [])]
    for column in ["variant", *columns]:
        is_name = column == "variant"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for row in result.variants:
        cells = [
            row.variant,
            f"{row.min_s:.3f}",
            f"{row.median_s:.3f}",
            f"{row.cpu_s if row.host_s is None else row.host_s:.3f}",
            f"{row.times_min:.2f}",
            f"{row.times_median:.2f}",
            f"{row.times_flops:.2f}",
            f"{row.peak_bytes / 1e6:,.1f}",
            f"{row.times_peak_bytes:.2f}",
            f"{row.pairs_per_s:,.1f}",
            f"{row.tokens_per_s:,.0f}",
        ]
        if row.host_calls is not None:
            cells += [f"{row.host_calls.launches:,}", f"{row.host_calls.synchronizations}"]
            cells.append("" if row.mfu is None else f"{row.mfu:.1%}")
        table.add_row(*cells)
    console.print(table)


def describe_errors(result: Comparison) -> str:
    """TRL's own errors against float32 beside the worst of all others; or, in float32, all differences from TRL."""
    told = []
    for kind in ("loss", "gradient"):
        errors = {row.variant: getattr(row, f"{kind}_error") for row in result.variants}
        trl = errors.pop(BASELINE)
        own = "" if result.compared_with == BASELINE else f"{BASELINE} {trl:.1e}, {OURS} {errors[OURS]:.1e}, "
        limit = getattr(result, f"{kind}_limit")
        told.append(f"{kind} {own}largest {max(errors.values()):.1e} (at most {limit:.1e})")
    return f"errors against {result.compared_with}: {'; '.join(told)}"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=DEFAULT_MODELS)
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and computing; default: fp32 on cpu, bf16 on cuda")
    parser.add_argument(
        "--peft", nargs="+", default=["none"], choices=PEFT, help="what is trained; default: all weights"
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, help="models with random weights")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, help="shapes of pairs, prompt/answer")
    parser.add_argument("--batch-pairs", type=int, help="pairs a batch, for every shape")
    parser.add_argument("--data", type=Path, help="a preference file to measure on as well")
    parser.add_argument("--model-folder", nargs="+", default=[], help="models for --data, with their tokenizers")
    parser.add_argument("--max-length", type=int, help="tokens of prompt + answer in --data; default: at most 1024")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short pairs: does it run at all?")
    parser.add_argument(
        "--write",
        nargs="?",
        const=BENCHMARK,
        metavar="NAME",
        help=f"write results/<machine>/NAME.json, which begins with {BENCHMARK}; default: {BENCHMARK}",
    )
    args = parser.parse_args(argv)
    if args.write and not args.write.startswith(BENCHMARK):
        parser.error(f"--write {args.write}: the name begins with {BENCHMARK}, by which results are found")
    if bool(args.data) != bool(args.model_folder):
        parser.error("--data and --model-folder go together")
    return args


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    args = parse(argv)
    _quiet()
    console = Console(soft_wrap=True)
    device = torch.device(args.device)
    dtype = DTYPES[args.dtype or ("bf16" if args.device == "cuda" else "fp32")]
    console.print(f"{args.device}, {dtype}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs", highlight=False)
    results, refused = [], None
    with tempfile.TemporaryDirectory() as folder:
        asked = _contests(args, device, dtype, folder, console)
        for (model, build, shapes), trained in product(asked, args.peft):
            contest = build(PeftMethod(trained))
            for pairs, batches in shapes:
                try:
                    result = compare(contest, model, trained, pairs, batches, args.rounds)
                    print_comparison(result, args.rounds, console)
                    results.append(asdict(result))
                except (torch.OutOfMemoryError, DisagreementError) as error:
                    is_memory = isinstance(error, torch.OutOfMemoryError)
                    reason = "out of memory" if is_memory else str(error)
                    refused = refused if is_memory else error.with_traceback(None)  # whose frames hold models
                    console.print(f"{model}, {trained}, {pairs}: {reason}", highlight=False)
                    results.append({"model": model, "trained": trained, "pairs": pairs, "error": reason})
                    contest.policy.zero_grad()
                    contest.release_optimizer()
                if args.write:
                    path = write(results, args, argv, dtype, device)
            del contest
            gc.collect()  # trainers hold each other; the next model needs the room
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if args.write:
        console.print(f"written: {path}")
    if refused is not None:
        raise refused


def write(results: list[dict[str, Any]], args: Any, argv: list[str], dtype: torch.dtype, device: torch.device) -> Path:
    """Writes what has been measured so far, so that a later failure costs nothing of it."""
    content = {"dtype": str(dtype), "threads": torch.get_num_threads(), "rounds": args.rounds, "results": results}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    packages = (*PACKAGES, "liger-kernel") if find_spec("liger_kernel") else PACKAGES
    return write_results(args.write, content, packages=packages, argv=argv, gpu=gpu, module="benchmarks.dpo_step")


def _contests(
    args: Any, device: torch.device, dtype: torch.dtype, folder: str, console: Console
) -> Iterator[tuple[str, Callable[[PeftMethod], Contest], list[tuple[str, Batches]]]]:
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


def _build_random(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, folder: str, method: PeftMethod
) -> Contest:
    return Contest(shape.build(device, dtype), folder, method=method)


def _load(
    path: Path, tokenizer: Any, device: torch.device, dtype: torch.dtype, folder: str, method: PeftMethod
) -> Contest:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device)
    return Contest(model, folder, tokenizer, method)


def _quiet() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main(sys.argv[1:])
