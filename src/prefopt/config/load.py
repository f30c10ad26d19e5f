"""From the command line to a checked `TrainConfig`: composition, defaults that depend on others, identity."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import yaml

from prefopt.config.algorithms import ALGORITHMS
from prefopt.config.catalog import NESTED
from prefopt.config.checks import check
from prefopt.config.choices import AUTO, PeftMethod
from prefopt.config.composition import Composed, Tree
from prefopt.config.plain import as_dict
from prefopt.config.presets import TAG, find_left_out
from prefopt.config.ranges import require
from prefopt.config.schema import BAD_ROW_SWITCHES, TrainConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import places
from prefopt.process.ranks import Launch, is_main

logger = logging.getLogger(__name__)

TRAIN = Tree(
    "train",
    TrainConfig,
    {"algorithm": ALGORITHMS},
    open_tables=("trainer.extra", "data.columns", "data.gate.warn", "data.gate.error"),
    nested_groups=NESTED,
)
NOT_IDENTITY = {
    "run": ("name", "root", "overwrite", "time_limit", "timeout_s"),
    "data": ("gate", "test"),
    "logger": None,
    "evaluation": (
        "batch_size",
        "contestants",
        "judges",
        "tasks",
        "num_judged",
        "regression",
        "min_gain",
        "min_loss_gain",
        "min_prompts",
        "limits",
    ),
    "reference": ("path",),
    "trainer": ("keep_checkpoints", "log_rows"),
}
"""Settings that do not change what a run computes, so they are left out of its identity (None: the whole group)."""
ONLY_WHEN_SET = (
    "trainer.callbacks",
    "algorithm.loss_function",
    "data.columns",
    "data.system",
    "data.pairs",
    "data.min_margin",
    "data.tag",
    "data.on_bad",
    "data.max_rows",
    "data.shuffle_seed",
)
"""Settings that belong to the identity only where they are set: runs without them keep the name that they had before
these settings existed."""
MAY_CHANGE = ("trainer.log_every", "trainer.save_every", "trainer.eval_every")
"""Settings that may differ from one attempt at a run to the next: they change what is written, not what is trained."""
MAY_GROW = ("trainer.max_steps", "trainer.num_epochs")
"""Settings that may be raised from one attempt to the next, to train on."""
PATHS = (
    "model.path",
    "model.chat_template",
    "data.train",
    "data.held_out",
    "evaluation.pairs",
    "evaluation.neutral_texts",
)
"""Settings that name files: two ways to write one place are no difference between attempts."""
DIGITS = 12
"""Of a number, as far as two of them are the same setting."""


def load_config(overrides: Sequence[str], config_dir: str | None = None, launch: Launch | None = None) -> TrainConfig:
    """Composes `conf/train.yaml` with `overrides` and returns the checked, complete configuration.

    Args:
        overrides: Hydra overrides, as on the command line.
        config_dir: A folder of the user's own config groups.
        launch: How it will be started; unset: as this process was.

    Raises:
        UserError: An unknown, mistyped, missing or contradictory setting.
    """
    require(not isinstance(overrides, str), f"overrides: must be a list of settings, found the text {overrides!r}.")
    composed = TRAIN.compose(overrides, config_dir)
    config = complete(composed, launch)
    if is_main():
        _tell_left_out(composed, config)
    return config


def _tell_left_out(composed: Composed, config: TrainConfig) -> None:
    """Says which held-out files of a preset are not used, because the training data is not the preset's.

    Its tags are of its own files, and nobody misses them.
    """
    left_out = {key: file for key, file in find_left_out(composed).items() if key != TAG}
    for key, file in left_out.items():
        share = f" A share of {config.data.held_out_fraction:g} of its prompts is held out."
        logger.warning(
            f"{key}: {file} is not used, because it goes with other training data than "
            f"{config.data.train}.{share if key == 'data.held_out' else ''} Set {key} to use a file."
        )


def complete(composed: Composed, launch: Launch | None = None) -> TrainConfig:
    """The checked configuration, with the defaults that depend on other settings."""
    config: TrainConfig = composed.build()
    for key in find_left_out(composed):
        group, _, name = key.partition(".")
        setattr(getattr(config, group), name, None)
    if config.optim.learning_rate is None:
        for_all, for_adapters = config.algorithm.learning_rates
        config.optim.learning_rate = for_all if config.peft.method is PeftMethod.none else for_adapters
    label = composed.label or config.algorithm.name.value
    if config.logger.group is None:
        config.logger.group = label
    if config.run.name is None:
        config.run.name = f"{label}-{fingerprint(config)[:8]}"
    check(config, launch or Launch.of_this_process())
    return config


def to_yaml(config: TrainConfig) -> str:
    """The complete configuration as YAML."""
    return str(yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True))


def from_dict(values: dict[str, Any], where: str) -> TrainConfig:
    """Builds the configuration from plain values; `where` names their source in errors."""
    try:
        algorithm = values["algorithm"]["name"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: not a configuration of this version of prefopt ({error}).") from error
    config: TrainConfig = TRAIN.build_from(values, {"algorithm": algorithm}, where)
    return config


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, as plain values; of numbers, the digits that a person chooses."""
    values: dict[str, Any] = _rounded(as_dict(config))
    for group, keys in NOT_IDENTITY.items():
        if keys is None:
            del values[group]
        else:
            for key in keys:
                del values[group][key]
    for switch in BAD_ROW_SWITCHES:
        values["data"][switch] = config.data.decide(switch).name  # unset or set to the same: no difference
    # Runs from before `auto` was the default had false, and keep their names.
    values["data"]["as_chat"] = {AUTO: False, False: "false", True: True}[config.data.as_chat]
    for setting in ONLY_WHEN_SET:
        group, _, key = setting.partition(".")
        if is_unset(values[group].get(key)):
            values[group].pop(key, None)
    return values


def is_unset(value: object) -> bool:
    """Returns whether a value is none: null, or an empty text, list or table, but not 0."""
    return value is None or value in ("", [], {})


def _rounded(values: object) -> Any:
    """The same with numbers to `DIGITS` digits: `10 * 1e-6` and `1e-5` are one setting, though two numbers."""
    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}")
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return [_rounded(value) for value in values] if isinstance(values, list) else values


def fingerprint(config: TrainConfig) -> str:
    """SHA-256 (hex) of `identity`: the same on every rank and at every time."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Lists the differences that forbid to go on with a run under a new configuration, as `key: old -> new`."""
    before, after = flatten(identity(old)), flatten(identity(new))
    may_grow = new.trainer.tokens_per_device is None  # such batches are planned for the whole length of a run
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
        and key not in MAY_CHANGE
        and not (key in PATHS and places(before.get(key)) == places(after.get(key)))
        and not (may_grow and _has_grown(key, before.get(key), after.get(key)))
    ]


def has_grown(old: TrainConfig, new: TrainConfig) -> bool:
    """True if the new configuration trains longer than the old one."""
    before, after = flatten(identity(old)), flatten(identity(new))
    return any(before.get(key) != after.get(key) for key in MAY_GROW)


def _has_grown(key: str, before: Any, after: Any) -> bool:
    return key in MAY_GROW and None not in (before, after) and after > before


def flatten(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Returns the values of nested tables by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
