"""Entry point: a finished run → its report, measured again. `python -m prefopt.evaluate --help` shows the use."""

import argparse
from pathlib import Path

import yaml

from prefopt.choices import AlgorithmName, LossOn
from prefopt.config import as_dict, from_dict, read_config, setting_names, unknown
from prefopt.errors import UserError, run_entry
from prefopt.run_directory import RunDirectory
from prefopt.schema import SFTAlgorithmConfig, TrainConfig

HELP = """Measure a finished run again and rebuild its report.

  python -m prefopt.evaluate run=runs/<name>
  python -m prefopt.evaluate run=runs/<name> evaluation.batch_size=1 data.held_out=other_pairs.jsonl

Settings of `evaluation` and `data.held_out` may be changed; everything else is as in the run's config.yaml."""


def main(argv: list[str]) -> None:
    """Rebuilds `report/` of a run.

    Raises:
        UserError: No such run, no final model in it, or a setting that may not change.
    """
    parser = argparse.ArgumentParser("prefopt.evaluate", None, HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="run=<folder>, evaluation.<setting>=<value>")
    overrides = dict(_split(item) for item in parser.parse_args(argv).overrides)
    if "run" not in overrides:
        raise UserError("run: required. Give run=<folder of a run>, such as run=runs/<name>.")
    run = RunDirectory(Path(overrides.pop("run")))
    if not run.config.is_file():
        raise UserError(f"run={run.path}: no run of prefopt here (no config.yaml).")
    if not run.model.is_dir():
        raise UserError(f"run={run.path}: has no final model yet. Finish it with the command that started it.")
    config = override(read_config(run.config), overrides)

    from prefopt.data.loading import load_tokenized, read_splits
    from prefopt.tracking.console import build_console

    console = build_console()
    is_dpo = config.algorithm.name is AlgorithmName.dpo
    splits = read_splits(config.data, kind="preference" if is_dpo else "sft", seed=config.run.seed)

    # torch and TRL take seconds to import; the checks above answer at once.
    from prefopt.evaluation.run import build_material, evaluate_run
    from prefopt.modeling.load import check_hardware, load_tokenizer
    from prefopt.report.console import print_report

    check_hardware(config)
    tokenizer = load_tokenizer(config.model)
    loss_on = config.algorithm.loss_on if isinstance(config.algorithm, SFTAlgorithmConfig) else LossOn.completions
    data = load_tokenized(splits, tokenizer, config.data, loss_on=loss_on)
    material = build_material(config, splits, data, tokenizer)
    report = evaluate_run(config, run, data, material, tokenizer)
    print_report(report, run.report / "report.html", console)


def override(config: TrainConfig, overrides: dict[str, str]) -> TrainConfig:
    """Returns `config` with the given settings changed."""
    values = as_dict(config)
    for key, value in overrides.items():
        if key not in setting_names():
            raise UserError(unknown(key))
        group, name = key.split(".", 1)
        if group != "evaluation" and key != "data.held_out":
            raise UserError(f"{key}: an evaluation cannot change it. Allowed: evaluation.*, data.held_out.")
        values[group][name] = yaml.safe_load(value)
    return from_dict(values, "the changed settings")


def _split(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"{item}: write settings as name=value.")
    return key.lstrip("+"), value


if __name__ == "__main__":
    run_entry(main)
