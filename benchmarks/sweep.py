"""A sweep of eight over beta and learning rate of a small DPO study: plain TRL against prefopt, losses compared first.

python -m benchmarks.sweep
python -m benchmarks.sweep --pairs 400 --steps 60 --write

  trl             TRL's trainer, the reference model runs in every step (its default)
  trl_precompute  TRL's trainer with precompute_ref_log_probs, whose cache is on disk and is asked by every member
  prefopt         prefopt's trainer: prompts computed once, reference log-probs from a store that is empty at first

A member's time goes from its rows on disk to the end of training: tokenising, loading the models, the reference, and
the steps. Imports, composing the configuration, checkpoints and evaluation are in no side's time. All members run in
one process, sides in turns, so that a busy machine slows all sides: what members share, the store of prefopt and the
caches of TRL and `datasets`, lies on disk, as it would between processes. The shipped model, pairs of the shipped
study, same arguments, same order of pairs, gradient checkpointing off on every side.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import torch
import trl
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from benchmarks.results import write_results
from prefopt.algorithms import load_algorithm
from prefopt.config.load import load_config
from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed.preemption import StopRequest
from prefopt.models.examples import load_examples
from prefopt.models.load import load_model, load_tokenizer
from prefopt.process.paths import shipped
from prefopt.runs.directory import RunDirectory
from prefopt.training.arguments import build_arguments
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
BETAS = (0.1, 0.3)
LEARNING_RATES = (5e-6, 1e-5, 2e-5, 5e-5)
LIMIT = 1e-4
"""Largest difference of any step's training loss between sides, above which no time is printed."""
ROW_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Member:
    """What one member took on one side.

    Attributes:
        prepare_s: From rows to the first step, the reference passes before training included.
        train_s: The steps, live reference passes included.
        num_reference_pairs: Pairs whose reference log-probs were computed, each time counted.
        losses: Of every step.
    """

    side: str
    beta: float
    learning_rate: float
    prepare_s: float
    train_s: float
    num_reference_pairs: int
    losses: list[float]


class Counter:
    """Pairs that went through the reference."""

    num_pairs = 0


def prepare_prefopt(config: TrainConfig, rows: Path, counter: Counter) -> Any:
    """Builds our trainer and looks up the reference."""
    run = RunDirectory.of(config)
    context = RunContext(config, run, StopRequest([]), Console(quiet=True), StepSize.of(config, None))
    trainer = build_trainer(load_algorithm(config.algorithm), context, load_examples(config))
    _without_saving(trainer.args)
    run.path.mkdir(parents=True)
    trainer.prepare()
    counter.num_pairs += json.loads(run.work.read_text(encoding="utf-8"))["reference"]["num_computed"]
    return trainer


def prepare_trl(config: TrainConfig, rows: Path, counter: Counter, *, precompute: bool) -> Any:
    """Builds TRL's trainer with the same arguments, as TRL's documentation has it."""
    arguments = _without_saving(
        build_arguments(load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None))
    )
    arguments.precompute_ref_log_probs = precompute
    arguments.max_length = config.data.max_length
    dataset = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(rows.parent / "json"))
    with mock.patch.object(trl.DPOTrainer, "compute_ref_log_probs", _counting(counter)):
        trainer = trl.DPOTrainer(
            model=load_model(config.model),
            ref_model=None if precompute else load_model(config.model),
            args=arguments,
            train_dataset=dataset,
            processing_class=load_tokenizer(config.model),
        )
    if not precompute:
        hook = partial(_count_call, counter)
        trainer.ref_model.register_forward_pre_hook(hook, with_kwargs=True)
    return trainer


SIDES: dict[str, Callable[[TrainConfig, Path, Counter], Any]] = {
    "trl": lambda config, rows, counter: prepare_trl(config, rows, counter, precompute=False),
    "trl_precompute": lambda config, rows, counter: prepare_trl(config, rows, counter, precompute=True),
    "prefopt": prepare_prefopt,
}


def run_member(side: str, beta: float, learning_rate: float, rows: Path, steps: int) -> Member:
    """Trains one member on one side."""
    config = load_config(
        [
            "data=files",
            f"data.train={rows}",
            "data.held_out_fraction=0",
            f"algorithm.beta={beta}",
            f"optim.learning_rate={learning_rate}",
            f"trainer.max_steps={steps}",
            "trainer.log_every=1",
            "logger=none",
            f"run.root={rows.parent / side}",
            f"reference.path={rows.parent / 'reference'}",
        ]
    )
    counter = Counter()
    begun = time.perf_counter()
    trainer = SIDES[side](config, rows, counter)
    ready = time.perf_counter()
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    ended = time.perf_counter()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == steps, "every step logs its loss"
    return Member(side, beta, learning_rate, ready - begun, ended - ready, counter.num_pairs, losses)


def require_equal(members: list[Member]) -> float:
    """Returns the largest difference of a step's losses between the sides.

    Raises:
        SystemExit: It is above the limit.
    """
    sides: dict[tuple[float, float], list[list[float]]] = {}
    for member in members:
        sides.setdefault((member.beta, member.learning_rate), []).append(member.losses)
    steps = [values for losses in sides.values() for values in zip(*losses, strict=True)]
    largest = max(max(values) - min(values) for values in steps)
    if not largest <= LIMIT:
        raise SystemExit(f"losses differ by {largest:.1e} between sides (at most {LIMIT:g}): no time is printed")
    return largest


def summarise(members: list[Member]) -> list[dict[str, Any]]:
    """Totals of each side, and how many times prefopt's its time is."""
    totals = []
    for side in SIDES:
        own = [member for member in members if member.side == side]
        prepare_s, train_s = sum(m.prepare_s for m in own), sum(m.train_s for m in own)
        totals.append(
            {
                "side": side,
                "members": len(own),
                "prepare_s": prepare_s,
                "train_s": train_s,
                "total_s": prepare_s + train_s,
                "num_reference_pairs": sum(member.num_reference_pairs for member in own),
            }
        )
    return [{**total, "times": total["total_s"] / totals[-1]["total_s"]} for total in totals]


def print_totals(totals: list[dict[str, Any]], difference: float, console: Console) -> None:
    """Prints a table with one line for each side."""
    caption = f"losses of the sides differ by at most {difference:.1e} in any step"
    table = Table(title=f"{totals[0]['members']} members", caption=caption)
    for column in ("side", "prepare s", "train s", "total s", "x prefopt", "reference pairs"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for total in totals:
        seconds = [f"{total[name]:.1f}" for name in ("prepare_s", "train_s", "total_s")]
        table.add_row(total["side"], *seconds, f"{total['times']:.2f}", f"{total['num_reference_pairs']:,}")
    console.print(table)


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=320, help="pairs of the shipped study")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of 8 pairs")
    parser.add_argument("--members", type=int, default=8, help="at most 8: the first so many")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/sweep.json")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, PREFOPT_CACHE=folder, TQDM_DISABLE="1"):
        rows = _write_rows(Path(folder) / "train.jsonl", args.pairs)
        grid = list(itertools.product(BETAS, LEARNING_RATES))[: args.members]
        few = _write_rows(Path(folder) / "warm_up" / "train.jsonl", 8)
        for side in SIDES:
            run_member(side, *grid[0], few, 1)  # the first use of anything is slow
        members = [run_member(side, *settings, rows, args.steps) for settings in grid for side in SIDES]
    difference = require_equal(members)
    totals = summarise(members)
    print_totals(totals, difference, console)
    if args.write:
        content = {
            "threads": torch.get_num_threads(),
            "pairs": args.pairs,
            "steps": args.steps,
            "largest_loss_difference": difference,
            "totals": totals,
            "members": [asdict(member) for member in members],
        }
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        console.print(f"written: {write_results('sweep', content, packages=PACKAGES, argv=argv, gpu=gpu)}")


def _write_rows(path: Path, num_pairs: int) -> Path:
    source = shipped("experiments/brand_voice") / "train.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()[:num_pairs]
    rows = [{key: value for key, value in json.loads(line).items() if key in ROW_KEYS} for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _without_saving(arguments: Any) -> Any:
    arguments.save_strategy = "no"
    return arguments


def _counting(counter: Counter) -> Callable[..., Any]:
    """`DPOTrainer.compute_ref_log_probs`, counting the pairs of every call."""
    original = trl.DPOTrainer.compute_ref_log_probs

    def counting(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        _count_call(counter, model, (), inputs)
        return original(self, model, inputs)

    return counting


def _count_call(counter: Counter, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    counter.num_pairs += len(kwargs["input_ids"]) // 2


if __name__ == "__main__":
    main(sys.argv[1:])
