"""The life of a run once its configuration and data are known to be good: status, training, report."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.choices import AlgorithmName
from prefopt.distributed.ranks import is_main
from prefopt.errors import UserError
from prefopt.evaluation.measure import release_memory
from prefopt.evaluation.run import build_material, evaluate_run
from prefopt.examples import Examples
from prefopt.report.console import print_report
from prefopt.run_directory import RunDirectory, State
from prefopt.schema import TrainConfig
from prefopt.tracking.metrics import MetricsLog
from prefopt.tracking.provenance import collect, command_line
from prefopt.tracking.wandb import start_wandb
from prefopt.trainers import dpo, sft
from prefopt.trainers.arguments import build_dpo_arguments, build_sft_arguments
from prefopt.trainers.callbacks import DivergedError
from prefopt.trainers.training import train

ALGORITHMS = {
    AlgorithmName.dpo: (build_dpo_arguments, dpo.build),
    AlgorithmName.sft: (build_sft_arguments, sft.build),
}


def train_and_report(
    config: TrainConfig,
    run: RunDirectory,
    examples: Examples,
    console: Console,
    argv: list[str],
) -> None:
    """Trains, evaluates and leaves the run `done`; any other end is in status.json with its reason.

    Raises:
        UserError: Settings that TRL or PEFT refuse; the run directory is not touched then.
    """
    material = build_material(config, examples)
    set_seed(config.run.seed)
    trainer = build_trainer(config, run, examples)
    if is_main():
        data = {"sha256": examples.fingerprints(), **examples.tokenized.notes.to_dict()}
        run.start(config, collect(config, data, command_line("prefopt.train", argv)))
    with recorded_end(run):
        mirror = start_wandb(config, run) if is_main() else None
        log = MetricsLog(run.metrics, mirror) if is_main() else None
        train(trainer, config, run, log, console)
        if not is_main():
            return
        del trainer  # its models, before the evaluation loads its own, whole ones
        release_memory()
        unset_hf_deepspeed_config()
        report = evaluate_run(config, run, examples, material)
        print_report(report, run.report / "report.html", console)
        if mirror is not None:
            mirror.finish(report)
        run.set_state(State.done, step=report["run"]["steps"], message="")


def build_trainer(config: TrainConfig, run: RunDirectory, examples: Examples) -> Any:
    """Loads the models and returns TRL's trainer; what TRL and PEFT refuse is the user's to mend."""
    build_arguments, build = ALGORITHMS[config.algorithm.name]
    arguments = build_arguments(config, run)
    try:
        return build(config, arguments, examples)
    except UserError:
        run.discard_if_empty()
        raise
    except (ValueError, NotImplementedError) as error:
        run.discard_if_empty()
        raise UserError(f"these settings cannot be trained: {error}") from error


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
