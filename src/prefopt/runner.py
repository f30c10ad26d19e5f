"""The life of a run once its configuration and data are known to be good: status, training, report."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from transformers import set_seed

from prefopt.data.loading import Splits, TokenizedSplits
from prefopt.distributed.ranks import is_main
from prefopt.evaluation.run import evaluate_run
from prefopt.report.console import print_report
from prefopt.run_directory import RunDirectory, State
from prefopt.schema import AlgorithmName, TrainConfig
from prefopt.tracking.metrics import MetricsLog, read_metrics
from prefopt.tracking.provenance import collect, command_line
from prefopt.tracking.wandb import start_wandb
from prefopt.trainers import dpo, sft
from prefopt.trainers.callbacks import DivergedError

ALGORITHMS = {AlgorithmName.dpo: dpo.run, AlgorithmName.sft: sft.run}


def train_and_report(
    config: TrainConfig,
    run: RunDirectory,
    splits: Splits,
    data: TokenizedSplits,
    tokenizer: Any,
    console: Console,
    argv: list[str],
) -> None:
    """Trains, evaluates and leaves the run `done`; any other end is in status.json with its reason."""
    log = mirror = None
    if is_main():
        run.start(config, collect(config, data.notes.to_dict(), command_line("prefopt.train", argv)))
        mirror = start_wandb(config, run)
        log = MetricsLog(run.metrics, mirror)
    with recorded_end(run):
        set_seed(config.run.seed)
        ALGORITHMS[config.algorithm.name](config, run, data, tokenizer, log, console)
        if not is_main():
            return
        report = evaluate_run(config, run, splits, data, tokenizer)
        print_report(report, run.report / "report.html", console)
        if mirror is not None:
            mirror.finish(report)
        last = max((record["step"] for record in read_metrics(run.metrics)), default=0)
        run.set_state(State.done, step=last, message="")


@contextmanager
def recorded_end(run: RunDirectory) -> Iterator[None]:
    """Writes why a run ended early to its status.json, and lets the error go on."""
    try:
        yield
    except KeyboardInterrupt:
        _record(run, State.preempted, "interrupted by the user")
        raise
    except DivergedError as error:
        _record(run, State.diverged, str(error))
        raise
    except BaseException as error:
        _record(run, State.failed, f"{type(error).__name__}: {error}")
        raise


def _record(run: RunDirectory, state: State, message: str) -> None:
    if is_main() and os.path.isdir(run.path):
        run.set_state(state, message=message)
