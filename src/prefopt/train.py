"""Trains by SFT or DPO and writes a report: `python -m prefopt.train --help`, or `prefopt.train(config)` in Python."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from rich.text import Text

from prefopt.config.durations import parse_time_limit
from prefopt.config.load import TRAIN, load_config, to_yaml
from prefopt.config.ranges import require
from prefopt.config.schema import TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.sources import list_files
from prefopt.distributed import group
from prefopt.distributed.entry import run_entry
from prefopt.distributed.group import on_main
from prefopt.distributed.preemption import StopRequest, scheduler_end
from prefopt.models.examples import load_examples
from prefopt.process import phases
from prefopt.process.console import build_console
from prefopt.process.errors import UserError
from prefopt.process.imports import importing
from prefopt.process.output import keep_in
from prefopt.process.ranks import is_launched, is_main
from prefopt.runs.directory import RunDirectory
from prefopt.runs.provenance import command_line, program_line
from prefopt.training.own_code import OwnCode, load_own_code, with_names

logger = logging.getLogger("prefopt.train")  # as `python -m` its name is __main__

HELP = """Tune a model and report whether it became better.

  python -m prefopt.train +experiment=dpo_brand_voice
  python -m prefopt.train model=hf model.path=<id or folder> data=files data.train=pairs.jsonl algorithm.beta=0.1

The same command goes on where an interrupted run stopped, and says so when the run is done. Several values per setting
make several runs, one after the other, with -m; on a cluster and with more to choose: python -m prefopt.submit.

  python -m prefopt.train -m +experiment=dpo_brand_voice algorithm.beta=0.1,0.3

What can be chosen: prefopt list. Every setting with its default: prefopt list settings, docs/settings.md."""


def main(argv: list[str]) -> None:
    """Runs one training run from command-line overrides.

    Raises:
        UserError: For every mistake that the user can fix; nothing is written then.
    """
    parser = SettingsParser("prefopt.train", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="*", help="group=option, group.setting=value, +experiment=name")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--cfg", choices=["job"], help="print the configuration that would run, and stop")
    instead.add_argument("-m", "--multirun", action="store_true", help="several runs: prefopt.submit cluster=local")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: interpolations resolved (always the case)")
    parser.add_argument("--config-dir", help="a folder with your own config groups, such as experiment/mine.yaml")
    options = parser.read(argv)
    if options.multirun:
        _run_several(options.overrides, options.config_dir)
        return
    phases.begin()
    with phases.of("configuration"):
        config = load_config(options.overrides, options.config_dir)
    if options.cfg:
        print(to_yaml(config), end="")
        return
    execute(config, {"command": command_line("prefopt.train", argv)}, OwnCode())


def _run_several(overrides: list[str], config_dir: str | None) -> None:
    from prefopt import submit

    if is_launched():
        raise UserError("-m starts processes of its own: leave out torchrun, and set cluster.ranks_per_node.")
    submit.main(["cluster=local", *overrides, *([] if config_dir is None else ["--config-dir", config_dir])])


def train(
    config: TrainConfig, *, loss: Callable[[Any], Any] | None = None, callbacks: Sequence[Any] = ()
) -> RunDirectory:
    """Does in this process what the command does with these settings, and returns the run.

    The same call goes on where an interrupted run stopped; of a run that is done it only says so.

    Args:
        config: What `load_config` returns; it is not changed.
        loss: As `algorithm.loss_function`: from `prefopt.algorithms.dpo.ScoredPairs` to a tensor of shape (pairs,).
        callbacks: Besides those of `trainer.callbacks`: instances or classes of transformers' `TrainerCallback`.

    Raises:
        UserError: For every mistake that the user can fix; nothing is written then.
        Preempted: A stop was asked for, by a signal or a time limit. It is no subclass of `Exception`.
    """
    phases.begin()
    require(isinstance(callbacks, list | tuple), f"callbacks: must be a list, found {type(callbacks).__name__}.")
    handed = OwnCode(loss, tuple(callbacks))
    named = with_names(config, handed)
    execute(named, {"program": program_line()}, handed)
    return RunDirectory.of(named)


def execute(config: TrainConfig, begun: dict[str, str], handed: OwnCode) -> None:
    """Connects the ranks, imports what the settings name, loads the examples, trains and reports.

    Args:
        config: The settings, which name what was handed over too.
        begun: How the run was begun, for its provenance.
        handed: The loss and the callbacks that a caller in Python has given.
    """
    if is_launched():
        with importing():  # imports torch, and waits for the other ranks to do so
            group.start(config)
    own = load_own_code(config, handed)
    limit, end = parse_time_limit(config.run.time_limit), scheduler_end()
    console = build_console()
    with (
        StopRequest.install(time_limit_s=limit, scheduler_end=end) as stop,
        RunDirectory.of(config).claimed(config) as run,
    ):
        keep_in(run.path)
        if on_main(lambda: not config.run.overwrite and run.is_done(config)):
            console.print(on_main(lambda: run.describe_done(config)))
            console.print("Start it afresh with run.overwrite=true, or start another with run.name=<name>.")
            return
        pruned = on_main(lambda: None if config.run.overwrite else run.why_pruned())
        if pruned is not None:
            console.print(f"{run.path}: {pruned}")
            console.print("Start it afresh with run.overwrite=true, or start another with run.name=<name>.")
            return
        console.print(Text.assemble((str(run.path), "bold"), f"  {describe(config)}"))
        on_main(lambda: list_files(config.data.test))  # raises now if they are missing, and not after all choices
        # Of several ranks, those that wait for the data would not know that rank 0 has stopped.
        with stop.raise_at_once() if group.num_ranks() == 1 else nullcontext():
            examples = load_examples(config, audited=True)

        with importing():
            from prefopt.algorithms import load_algorithm
            from prefopt.evaluation.power import describe_power
            from prefopt.training.runner import train_and_report

            algorithm = load_algorithm(config.algorithm)  # TRL, a matter of seconds

        if is_main():
            level, words = describe_power(examples.tokenized.held_out, config.evaluation)
            logger.log(level, words)
        train_and_report(algorithm, config, run, examples, stop, console, begun, own)


def describe(config: TrainConfig) -> str:
    """One line with the main settings of a run."""
    parts: dict[str, Any] = {
        "": config.algorithm.name.value,
        "model": config.model.path,
        "data": config.data.train,
        "held_out": config.data.held_out or f"{config.data.held_out_fraction:.0%}",
        "peft": config.peft.method.value,
        "lr": config.optim.learning_rate,
        "seed": config.run.seed,
    }
    return "  ".join(f"{key}={value}" if key else str(value) for key, value in parts.items())


if __name__ == "__main__":
    run_entry(main)
