"""The reference pass alone: fills the store for runs that train later."""

from rich.console import Console
from transformers import set_seed

from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed.group import on_main
from prefopt.distributed.preemption import StopRequest
from prefopt.evaluation.run import describe_sources
from prefopt.models.examples import Examples
from prefopt.models.fingerprint import describe_model
from prefopt.process import phases
from prefopt.process.ranks import is_main
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.provenance import collect, command_line
from prefopt.training.algorithm import Algorithm
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext
from prefopt.training.ending import recorded_end
from prefopt.training.fit import without_trial


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
