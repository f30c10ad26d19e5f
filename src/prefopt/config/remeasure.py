"""The settings of a finished run that is measured again: which of them may change, and what `split=test` means."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefopt.config.checks import check, check_test
from prefopt.config.contestants import read_contestants
from prefopt.config.judges import read_judges
from prefopt.config.load import TRAIN, from_dict
from prefopt.config.overrides import parse
from prefopt.config.plain import as_dict
from prefopt.config.ranges import require
from prefopt.config.schema import BAD_ROW_SWITCHES, DataConfig, DeepSpeedConfig, EvaluationConfig, TrainConfig
from prefopt.config.tasks import read_tasks
from prefopt.process.errors import UserError
from prefopt.process.paths import places
from prefopt.process.ranks import Launch
from prefopt.process.terminal import quote

logger = logging.getLogger(__name__)

SPLITS = ("held_out", "test")
ROWS = (
    "max_length",
    "on_bad",
    *(name for name in BAD_ROW_SWITCHES if name != "on_overlap"),
    "on_long_completion",
    "tag",
)
"""Settings of `data` that may be changed: other data than the run's may have other rows that cannot be used, and
other columns."""


def override(config: TrainConfig, overrides: dict[str, str]) -> TrainConfig:
    """Returns `config` with the given settings changed; with `split=test`, with test data in place of held-out ones.

    Raises:
        UserError: A setting may not change, or there are no test data.
    """
    values = as_dict(config)
    values["deepspeed"] = asdict(DeepSpeedConfig())  # off: in an evaluation each rank holds a whole model
    is_test = asks_for_test(overrides)
    if is_test:
        values["evaluation"]["pairs"] = None  # of an SFT run: held-out data, by which runs were chosen
    for key, value in overrides.items():
        if key != "split":
            _set(values, key, value, is_test=is_test)
    data = values["data"]
    if data["tag"] is not None and "data.tag" not in overrides and _measures_other(config, data, is_test=is_test):
        logger.warning(
            f"data.tag={data['tag']}: is not used, because it goes with the run's own data. If this data has such a "
            f"column, add data.tag={quote(data['tag'])}."
        )
        data["tag"] = None
    if is_test:
        if data["test"] is None:
            raise UserError(
                "split=test: this run has no test data. Give them: split=test data.test=<file>, or set data.test when "
                "a run is trained."
            )
        # Pairs of an SFT run that are given with split=test may be the same file: they are test data as well.
        check_test(
            from_dict({**values, "evaluation": {**values["evaluation"], "pairs": None}}, "the changed settings")
        )
        data["held_out"], data["test"] = data["test"], None
    if is_test or "data.held_out" in overrides:
        data["held_out_fraction"] = DataConfig().held_out_fraction  # the run's own does not apply to a file
    changed = from_dict(values, "the changed settings")
    check(changed, Launch.of_this_process())
    _require_named_here(changed.evaluation, overrides)
    return changed


def _measures_other(config: TrainConfig, data: Mapping[str, Any], *, is_test: bool) -> bool:
    """Whether the data that are measured are neither the run's held-out nor its test data."""
    measured = data["test" if is_test else "held_out"]
    return places(measured) not in (places(config.data.held_out), places(config.data.test))


def _require_named_here(evaluation: EvaluationConfig, overrides: Mapping[str, str]) -> None:
    """Refuses code and servers that only a run's config.yaml names: others may be able to write to its folder.

    Raises:
        UserError: It names the code or the server, and how to say that it is meant.
    """
    readers: dict[str, Callable[[object], Sequence[object]]] = {
        "contestants": read_contestants,
        "judges": read_judges,
        "tasks": read_tasks,
    }
    for name, read in readers.items():
        if f"evaluation.{name}" in overrides:
            continue
        for entry in read(getattr(evaluation, name)):
            found = getattr(entry, "function", None) or getattr(entry, "endpoint", None)
            require(
                found is None,
                f"evaluation.{name}: the run's config.yaml names {found}. An evaluation runs no code and calls no "
                f"server that only a run's folder names: give evaluation.{name}=[...] here, or evaluation.{name}=[] "
                "to do without.",
            )


def asks_for_test(overrides: Mapping[str, str]) -> bool:
    """Returns whether `split=test` is given.

    Raises:
        UserError: There is no such split.
    """
    split = overrides.get("split", SPLITS[0])
    require(split in SPLITS, f"split={split}: no such split. Allowed: {', '.join(SPLITS)}.")
    return split == "test"


def _set(values: dict[str, Any], key: str, value: str, *, is_test: bool) -> None:
    """Changes one of the settings that an evaluation may change."""
    if key not in TRAIN.setting_names():
        raise UserError(TRAIN.unknown(key))
    measured, other = ("data.test", "data.held_out") if is_test else ("data.held_out", "data.test")
    if key == "data.test" and not is_test:
        raise UserError("data.test: is measured with split=test alone, which counts the look. Add split=test.")
    if key == other:
        raise UserError(f"{key}: with split=test, data.test is measured. Leave {key} or split=test out.")
    if key == measured and value in ("", "null"):
        raise UserError(f"{key}: name the data to measure on, or leave it out to measure on the run's own.")
    group, name = key.split(".", 1)
    if group != "evaluation" and key != measured and not (group == "data" and name in ROWS):
        raise UserError(
            f"{key}: an evaluation cannot change it. Allowed: evaluation.*, data.held_out, or split=test data.test, "
            f"and for their rows {', '.join(f'data.{row}' for row in ROWS)}."
        )
    (given,) = parse([TRAIN.normalise(each) for each in parse([f"{key}={value}"])])
    values[group][name] = given.value()


def split_override(item: str) -> tuple[str, str]:
    """Returns name and value of a setting that is given as `name=value`.

    Raises:
        UserError: It is not written so.
    """
    key, equals, value = item.partition("=")
    if not equals:
        meant = f"run={quote(item)}" if Path(item).is_dir() else "settings as name=value, and the run as run=<folder>"
        raise UserError(f"{item}: write {meant}")
    return key.lstrip("+"), value
