"""The life of a run once its configuration and data are known to be good: status, training, report."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from rich.console import Console
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed import group
from prefopt.distributed.group import on_main
from prefopt.distributed.preemption import Preempted, StopRequest
from prefopt.evaluation.measure import release_memory
from prefopt.evaluation.run import build_material, describe_data, describe_sources, evaluate_run
from prefopt.models.examples import Examples
from prefopt.models.fingerprint import describe_model
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main
from prefopt.reports.console import print_report
from prefopt.reports.publish import publish
from prefopt.runs.code_state import CodeState
from prefopt.runs.directory import RunDirectory, RunTakenOverError, State, trouble_of
from prefopt.runs.provenance import collect, command_line
from prefopt.tracking.wandb import start_wandb
from prefopt.training.algorithm import Algorithm
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext
from prefopt.training.fit import Fit, is_tried, without_trial
from prefopt.training.guards import DivergedError
from prefopt.training.own_code import OwnCode
from prefopt.training.pruning import PrunedError, end_pruned
from prefopt.training.training import train

logger = logging.getLogger(__name__)


def train_and_report(
    algorithm: Algorithm,
    config: TrainConfig,
    run: RunDirectory,
    examples: Examples,
    stop: StopRequest,
    console: Console,
    begun: dict[str, str],
    own: OwnCode,
) -> None:
    """Trains, evaluates and leaves the run `done`; any other end is in status.json with its reason.

    All ranks train and evaluate; rank 0 alone writes the report.

    Args:
        algorithm: What `config.algorithm` chooses.
        config: The settings.
        run: The run's folder, claimed by this process.
        examples: The data.
        stop: Whether somebody asks the run to stop.
        console: Where progress and the report are shown.
        begun: How the run was begun, for its provenance: the `command`, or the `program` that called `prefopt.train`.
        own: The user's own loss and callbacks.

    Raises:
        UserError: Settings that TRL or PEFT refuse; the run directory is not touched then.
        Preempted: A stop was asked for; the same command goes on.
    """
    with phases.of("set_up"):
        material = on_main(lambda: build_material(config, examples))
    set_seed(config.run.seed)
    is_fresh = on_main(lambda: config.run.overwrite and not run.is_overwriting(config))
    kept = None if is_fresh else on_main(run.read_step_size)
    size = StepSize.of(config, StepSize(**kept) if kept else None)
    kept_fit = None if is_fresh else on_main(run.read_fit)
    context = RunContext(config, run, stop, console, size, Fit(**kept_fit) if kept_fit else None, own)
    trainer = build_trainer(algorithm, context, examples)
    found = {"fit": asdict(trainer.fit)} if is_tried(config) else {}

    def start() -> None:
        data = {**describe_data(examples, material), **describe_sources(config, examples)}
        provenance = collect(config, data, describe_model(config.model), begun)
        run.start(config, {**provenance, "step_size": kept or asdict(size), **found})
        CodeState.read().write_diff(run.diff)
        phases.keep(run)

    with phases.of("set_up"):
        on_main(start)
    with ExitStack() as after, recorded_end(run):
        mirror = start_wandb(config, run) if is_main() else None
        if mirror is not None:
            after.push(mirror)  # it may take a while to end, and the status is to be on disk before
        try:
            train(trainer, mirror)
        except PrunedError as error:
            end_pruned(error, run, mirror, console)
            return
        del trainer  # its models, before the evaluation loads its own, whole ones
        release_memory()
        unset_hf_deepspeed_config()
        asked = [reason for reason in group.gather(stop.requested) if reason is not None]
        if asked:  # on one rank or all: either all stop here, or none
            raise Preempted(asked[0])
        with stop.raise_at_once():
            evaluation = evaluate_run(config, run, examples, material)
            if evaluation is None:
                return
            report = publish(evaluation, run)
        print_report(report, run.report / "report.html", console)
        if mirror is not None:
            mirror.finish(report.to_dict())
        phases.save()
        console.print(phases.describe(phases.seconds()))
        run.set_state(State.done, step=evaluation.steps, message="")


def compute_reference(
    algorithm: Algorithm,
    config: TrainConfig,
    run: RunDirectory,
    examples: Examples,
    stop: StopRequest,
    console: Console,
    argv: list[str],
) -> None:
    """Fills the reference store for runs like this one, and leaves this one `done` without training.

    W&B hears nothing of it: a run without a metric is nothing that somebody would upload or look for.

    Raises:
        UserError: Settings that TRL or PEFT refuse.
        Preempted: A stop was asked for; the same command goes on.
    """
    set_seed(config.run.seed)
    passing = without_trial(config, is_held_out=examples.tokenized.held_out is not None)
    context = RunContext(passing, run, stop, console, StepSize.of(config, None))
    trainer = build_trainer(algorithm, context, examples)
    data = {"sha256": examples.fingerprints(), **describe_sources(config, examples)}
    begun = {"command": command_line("prefopt.prepare", argv)}
    provenance = collect(config, data, describe_model(config.model), begun)
    on_main(lambda: run.start(config, provenance))
    on_main(lambda: phases.keep(run))
    with recorded_end(run):
        with phases.of("reference"):
            trainer.prepare()
        if is_main():
            phases.save()
            run.set_state(State.done, message="")
            console.print("prepared: runs with this model and these data find their tokens and reference log-probs")


@contextmanager
def recorded_end(run: RunDirectory) -> Iterator[None]:
    """Writes why a run ended early to its status.json, and lets the error go on."""
    try:
        yield
    except Preempted as error:
        _record(run, State.preempted, f"stopped on request ({error.reason}); the same command goes on")
        raise
    except KeyboardInterrupt:
        _record(run, State.preempted, "interrupted by the user; the same command goes on from the last checkpoint")
        raise
    except RunTakenOverError:
        raise  # the status is the other process's now
    except DivergedError as error:
        _record(run, State.diverged, str(error))
        raise
    except UserError as error:
        _record(run, State.failed, f"UserError: {error}")
        raise
    except BaseException as error:
        trouble = trouble_of(run, error)
        told = error if trouble is None else trouble
        _record(run, State.failed, f"{type(told).__name__}: {told}")
        if trouble is not None:
            raise trouble from error
        raise


def _record(run: RunDirectory, state: State, message: str) -> None:
    if is_main() and os.path.isdir(run.path):
        phases.save()
        try:
            run.set_state(state, message=message)
        except (OSError, UserError) as error:  # how the run ended must not be covered up
            logger.error("%s: cannot be written (%s); this is %s: %s", run.status, error, state.value, message)
