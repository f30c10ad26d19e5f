"""Measures a finished run again: `python -m prefopt.evaluate --help`, or `prefopt.evaluate(run)` in Python."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefopt.config.checks import check
from prefopt.config.choices import Kernels
from prefopt.config.load import TRAIN, from_dict
from prefopt.config.overrides import parse
from prefopt.config.plain import as_dict
from prefopt.config.ranges import require
from prefopt.config.schema import DataConfig, DeepSpeedConfig, TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.distributed import group
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError
from prefopt.process.imports import importing
from prefopt.process.ranks import Launch, is_launched
from prefopt.process.terminal import quote
from prefopt.runs.changes import find_changed_model
from prefopt.runs.directory import RunDirectory
from prefopt.runs.find import find_run
from prefopt.runs.settings import read_config

HELP = """Measure a finished run again and rebuild its report.

  python -m prefopt.evaluate run=runs/<name>
  python -m prefopt.evaluate run=runs/<name> evaluation.num_samples=128
  python -m prefopt.evaluate run=runs/<name> data.held_out=other_pairs.jsonl
  torchrun --nproc-per-node 8 -m prefopt.evaluate run=runs/<name>

Settings of `evaluation` and `data.held_out` may be changed; everything else is as in the run's config.yaml.
A report on other data goes to a folder of its own beside the run's, runs/<name>/report-<file>-<digest>."""


def main(argv: list[str]) -> None:
    """Rebuilds `report/` of a run, or writes a report on other data beside it, from command-line overrides."""
    parser = SettingsParser("prefopt.evaluate", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="+", help="run=<folder>, evaluation.<setting>=<value>, data.held_out=...")
    overrides = dict(_split(item) for item in parser.read(argv).overrides)
    if "run" not in overrides:
        raise UserError("run: required. Give run=<folder of a run>, such as run=runs/<name>.")
    _evaluate(Path(overrides.pop("run")), overrides)


def evaluate(run: RunDirectory | Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measures a finished run again, and returns what report.json holds, NaN for its null; {} on ranks other than 0.

    Args:
        run: What `train` returned, or the folder of a run.
        overrides: Settings of `evaluation`, and `data.held_out`, as on the command line. A report on other data than
            the run's goes to a folder of its own beside `report/`.

    Raises:
        UserError: There is no such run, it has no final model, another process trains or measures it, or a setting
            may not change.
    """
    require(not isinstance(overrides, str), f"overrides: must be a list of settings, found the text {overrides!r}.")
    folder = run.path if isinstance(run, RunDirectory) else Path(run)
    return _evaluate(folder, dict(_split(item) for item in overrides))


def _evaluate(folder: Path, overrides: dict[str, str]) -> dict[str, Any]:
    run = find_run(folder)
    _, config = read_settings(run, overrides)  # tells mistakes before the ranks meet and the run is locked
    if is_launched():
        with importing():
            group.start(config)
    with run.locked() as locked:
        return _measure(locked, overrides)


def _measure(run: RunDirectory, overrides: dict[str, str]) -> dict[str, Any]:
    trained, config = read_settings(run, overrides)  # before it was locked, another process may have replaced the run

    from prefopt.models.examples import load_examples
    from prefopt.process.console import build_console
    from prefopt.process.output import keep_in
    from prefopt.runs.final_model import require_sound_model

    console = build_console()
    keep_in(run.path)
    run.read_records()  # reports a damaged line now, not after measuring
    require_sound_model(run)
    group.on_main(lambda: require_same_base(run, trained))
    is_other = config.data.held_out != trained.data.held_out
    examples = load_examples(trained, measured=config.data.held_out if is_other else None)

    with importing():
        from prefopt.evaluation.run import build_material, choose_folder, evaluate_run  # imports TRL: seconds
        from prefopt.reports.console import print_report
        from prefopt.reports.publish import publish
        from prefopt.tracking.wandb import record_evaluation

    material = group.on_main(lambda: build_material(config, examples))
    folder = group.on_main(lambda: choose_folder(config, run, examples, material))
    evaluation = evaluate_run(config, run, examples, material)
    if evaluation is None:
        return {}
    report = publish(evaluation, run, folder)
    print_report(report, folder / "report.html", console)
    record_evaluation(config, run, report.to_dict())
    return report.to_dict()


def read_settings(run: RunDirectory, overrides: dict[str, str]) -> tuple[TrainConfig, TrainConfig]:
    """Returns the settings that a run was trained with, and those that it is to be measured with.

    Raises:
        UserError: The run has no final model, or a setting may not change.
    """
    if not run.model.is_dir():
        raise UserError(f"run={run.path}: has no final model yet. Finish it with the command that started it.")
    trained = read_config(run.config)
    config = override(trained, overrides)
    config.engine.kernels = Kernels.auto  # chosen for this machine, not for the one that trained
    return trained, config


def require_same_base(run: RunDirectory, config: TrainConfig) -> None:
    """Refuses a base model that has changed since training: it would be a wrong baseline, or a wrong base of adapters.

    Raises:
        UserError: The message names the files that have changed.
    """
    with importing():
        from prefopt.models.fingerprint import describe_model

    changed = find_changed_model(run.read_provenance(), {"model": describe_model(config.model)})
    if changed is not None:
        raise UserError(f"run={run.path}: {changed}. Put it back as it was, or train anew under another run.name.")


def override(config: TrainConfig, overrides: dict[str, str]) -> TrainConfig:
    """Returns `config` with the given settings changed."""
    values = as_dict(config)
    values["deepspeed"] = asdict(DeepSpeedConfig())  # off: in an evaluation each rank holds a whole model
    for key, value in overrides.items():
        if key not in TRAIN.setting_names():
            raise UserError(TRAIN.unknown(key))
        group, name = key.split(".", 1)
        if key == "data.held_out" and value in ("", "null"):
            raise UserError("data.held_out: name the data to measure on, or leave it out to measure on the run's own.")
        if group != "evaluation" and key != "data.held_out":
            raise UserError(f"{key}: an evaluation cannot change it. Allowed: evaluation.*, data.held_out.")
        (given,) = parse([TRAIN.normalise(each) for each in parse([f"{key}={value}"])])
        values[group][name] = given.value()
        if key == "data.held_out":
            values["data"]["held_out_fraction"] = (
                DataConfig().held_out_fraction
            )  # the run's own fraction does not apply to a file
    changed = from_dict(values, "the changed settings")
    check(changed, Launch.of_this_process())
    return changed


def _split(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        meant = f"run={quote(item)}" if Path(item).is_dir() else "settings as name=value, and the run as run=<folder>"
        raise UserError(f"{item}: write {meant}")
    return key.lstrip("+"), value


if __name__ == "__main__":
    run_entry(main)
