"""The life of a run once its configuration and data are known to be good: status, training, report."""

import logging
from contextlib import ExitStack
from dataclasses import asdict

from rich.console import Console
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed import group
from prefopt.distributed.group import on_main
from prefopt.distributed.preemption import Preempted, StopRequest
from prefopt.evaluation.material import build_material
from prefopt.evaluation.measure import release_memory
from prefopt.evaluation.run import describe_data, describe_sources, evaluate_run
from prefopt.models.examples import Examples
from prefopt.models.fingerprint import describe_model
from prefopt.process import phases
from prefopt.process.ranks import is_main
from prefopt.reports.console import print_report
from prefopt.reports.publish import publish
from prefopt.runs.code_state import CodeState
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.provenance import collect
from prefopt.tracking.wandb import start_wandb
from prefopt.training.algorithm import Algorithm
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext
from prefopt.training.ending import recorded_end
from prefopt.training.fit import Fit, is_tried
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
    found = {**({"fit": asdict(trainer.fit)} if is_tried(config) else {}), **trainer.describe_needs()}

    def start() -> None:
        data = {**describe_data(examples, material), **describe_sources(config, examples)}
        if examples.audit is not None:
            data["audit"] = examples.audit.to_dict()
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
            mirror.finish(report.to_dict(), evaluation.answers)
        phases.save()
        console.print(phases.describe(phases.seconds()))
        run.set_state(State.done, step=evaluation.steps, message="")
