"""From the command line to a checked `TrainConfig`: composition, suggestions, identity."""

import dataclasses
import difflib
import hashlib
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from prefopt.checks import check
from prefopt.choices import AlgorithmName, PeftMethod
from prefopt.errors import UserError
from prefopt.paths import shipped
from prefopt.schema import DPOAlgorithmConfig, SFTAlgorithmConfig, TrainConfig

ALGORITHMS = {AlgorithmName.dpo: DPOAlgorithmConfig, AlgorithmName.sft: SFTAlgorithmConfig}
EXTRA = "trainer.extra."
DEFAULT_LEARNING_RATE = {AlgorithmName.dpo: 1e-6, AlgorithmName.sft: 2e-5}
NOT_IDENTITY = {
    "run": ("name", "root", "overwrite", "time_limit", "timeout_s"),
    "logger": None,
    "evaluation": ("batch_size",),
    "reference": ("path",),
    "trainer": ("keep_checkpoints", "log_rows"),
}
"""Settings that do not change what a run computes, so they are left out of its identity (None: the whole group)."""
MAY_CHANGE = ("trainer.log_every", "trainer.save_every", "trainer.eval_every")
"""Settings that may differ from one attempt at a run to the next: they change what is written, not what is trained."""
MAY_GROW = ("trainer.max_steps", "trainer.num_epochs")
"""Settings that may be raised from one attempt to the next, to train on."""


def load_config(overrides: list[str], config_dir: str | None = None) -> TrainConfig:
    """Composes `conf/train.yaml` with `overrides` and returns the checked, complete configuration.

    Args:
        overrides: Hydra overrides, as on the command line.
        config_dir: A folder of the user's own config groups, searched before the shipped ones.

    Raises:
        UserError: An unknown, mistyped, missing or contradictory setting.
    """
    normalised = [_normalise(override) for override in _parse(overrides)]
    composed, experiment = _compose(normalised, config_dir)
    config = to_config(composed)
    if config.optim.learning_rate is None:
        factor = 1 if config.peft.method is PeftMethod.none else 10
        config.optim.learning_rate = DEFAULT_LEARNING_RATE[config.algorithm.name] * factor
    label = experiment or config.algorithm.name.value
    if config.logger.group is None:
        config.logger.group = label
    if config.run.name is None:
        config.run.name = f"{label}-{fingerprint(config)[:8]}"
    check(config)
    return config


def to_config(composed: DictConfig) -> TrainConfig:
    """Builds the dataclasses from a composed config; the only place where a DictConfig becomes typed."""
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = _full_key(error)
        raise UserError(f"{key}: required, and not set. Give {key}=<value>.") from error
    except OmegaConfBaseException as error:
        raise _readable(error) from error
    assert isinstance(config, TrainConfig)
    _refuse_strays(config, "")
    return config


def as_dict(config: Any) -> Any:
    """Turns a configuration into plain values: enums become their member names, dataclasses become dicts."""
    if dataclasses.is_dataclass(config):
        return {f.name: as_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, dict):
        return {key: as_dict(value) for key, value in config.items()}
    if isinstance(config, list):
        return [as_dict(value) for value in config]
    return config


def to_yaml(config: TrainConfig) -> str:
    """The complete configuration as YAML."""
    return str(yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True))


def read_config(path: Path) -> TrainConfig:
    """Reads back what `to_yaml` wrote (`config.yaml` of a run directory)."""
    return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def from_dict(values: dict[str, Any], where: str) -> TrainConfig:
    """Builds the configuration from plain values; `where` names their source in errors."""
    try:
        algorithm = ALGORITHMS[AlgorithmName[values["algorithm"]["name"]]]
        schema = OmegaConf.structured(TrainConfig(algorithm=algorithm()))
        merged = OmegaConf.merge(schema, values)
        assert isinstance(merged, DictConfig)
        return to_config(merged)
    except (KeyError, TypeError, OmegaConfBaseException) as error:
        raise UserError(f"{where}: not a configuration of this version of prefopt ({error}).") from error


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, as plain values."""
    values: dict[str, Any] = as_dict(config)
    for group, keys in NOT_IDENTITY.items():
        if keys is None:
            del values[group]
        else:
            for key in keys:
                del values[group][key]
    return values


def fingerprint(config: TrainConfig) -> str:
    """SHA-256 (hex) of `identity`: the same on every rank and at every time."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Lists the differences that forbid to go on with a run under a new configuration, as `key: old -> new`."""
    before, after = _flatten(identity(old)), _flatten(identity(new))
    may_grow = new.trainer.tokens_per_device is None  # such batches are planned for the whole length of a run
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
        and key not in MAY_CHANGE
        and not (may_grow and _has_grown(key, before.get(key), after.get(key)))
    ]


def has_grown(old: TrainConfig, new: TrainConfig) -> bool:
    """True if the new configuration trains longer than the old one."""
    before, after = _flatten(identity(old)), _flatten(identity(new))
    return any(before.get(key) != after.get(key) for key in MAY_GROW)


def _has_grown(key: str, before: Any, after: Any) -> bool:
    return key in MAY_GROW and None not in (before, after) and after > before


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(
            f"{str(error).splitlines()[0]} Write overrides as group=option or group.setting=value."
        ) from error


def _normalise(override: Override) -> str:
    """Checks one override's key against the schema and drops a needless `+` or `++`.

    What `+` would smuggle past the schema is thereby refused by name. `trainer.extra.*` is the one open table.
    """
    key = override.key_or_group
    line = override.input_line or ""
    bare = line.lstrip("+")
    if key == "experiment" or key.startswith("hydra.searchpath"):
        return line
    if key.startswith("hydra"):
        raise UserError(f"{key}: hydra's own settings have no effect here. See python -m prefopt.train --help.")
    if override.is_delete():
        raise UserError(f"~{key}: a setting cannot be removed. Set it to a value (null where it allows one).")
    if override.is_sweep_override():
        raise UserError(f"{key}: one run takes one value, found a sweep ({override.input_line}).")
    if key.startswith(EXTRA):
        return f"++{bare}"
    if key not in setting_names() and key not in group_names():
        raise UserError(unknown(key))
    return bare


def group_names() -> list[str]:
    """The config groups."""
    return [f.name for f in dataclasses.fields(TrainConfig)]


def setting_names() -> list[str]:
    """Every dotted setting of every algorithm."""
    names: dict[str, None] = {}
    for algorithm in ALGORITHMS.values():
        names |= dict.fromkeys(_leaves(TrainConfig(algorithm=algorithm()), ""))
    return list(names)


def unknown(key: str) -> str:
    """The message for a setting that does not exist, with the nearest one that does."""
    names = [*setting_names(), *group_names(), "experiment"]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not near:
        last = key.rsplit(".", 1)[-1]
        near = [name for name in names if name.rsplit(".", 1)[-1] == last][:1]
    if near:
        hint = f"Did you mean {near[0]}?"
    elif key.split(".")[0] in group_names():
        group = key.split(".")[0]
        hint = f"{group} has: {', '.join(n.split('.', 1)[1] for n in names if n.startswith(group + '.'))}."
    else:
        hint = f"Groups: {', '.join(group_names())}."
    return f"{key}: no such setting. {hint}"


def _leaves(config: Any, prefix: str) -> list[str]:
    names = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        name = f"{prefix}{f.name}"
        names += _leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


def _compose(overrides: list[str], config_dir: str | None) -> tuple[DictConfig, str | None]:
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(group="algorithm", name="base_dpo", node=DPOAlgorithmConfig)
    store.store(group="algorithm", name="base_sft", node=SFTAlgorithmConfig)
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {config_dir}: no such folder.")
        overrides = [*overrides, f"hydra.searchpath=['file://{folder}']"]
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            config = compose("train", overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _readable(error) from error
    chosen = config.hydra.runtime.choices.get("experiment")
    experiment = str(chosen) if chosen else None
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, re.sub(r"[^\w.-]+", "-", experiment).strip("-") if experiment else None


def _readable(error: Exception) -> UserError:
    """Turns an error of Hydra or OmegaConf into ours: the setting first, then what is wrong with it."""
    cause = error.__cause__ or error
    if isinstance(cause, UserError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    where = re.match(r"In '([^']+)': ", str(error))
    file = f"conf/{where.group(1)}.yaml: " if where and where.group(1) != "train" else ""
    if key and any(re.match(r"Key '[^']+' (is )?not in", line) for line in lines):
        return UserError(file + (_of_other_algorithm(key) or unknown(key)))
    if key:
        reason = next(line for line in lines if not line.startswith("In '")).rstrip(".")
        return UserError(f"{file}{key}: {reason}. Its meaning and range: prefopt/schema.py.")
    missing = re.search(r"Could not find '([^']+)'", str(cause))
    if missing:
        group, _, option = missing.group(1).rpartition("/")
        listed = re.search(r"Available options in '[^']+':((?:\n\t\S+)*)", str(cause))
        options = [name for name in (listed.group(1).split() if listed else []) if not name.startswith("base_")]
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return UserError(f"{group}={option}: no such option. {hint}Available: {', '.join(options)}.")
    return UserError(" ".join(lines))


def _of_other_algorithm(key: str) -> str | None:
    if key not in setting_names():
        return None
    owners = [name.value for name, schema in ALGORITHMS.items() if key in _leaves(TrainConfig(algorithm=schema()), "")]
    return f"{key}: a setting of algorithm={', '.join(owners)}, not of the chosen algorithm."


def _full_key(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or "a setting")


def _refuse_strays(config: Any, prefix: str) -> None:
    """Refuses attributes that the dataclasses do not declare (`++` can leave them behind)."""
    declared = {f.name for f in dataclasses.fields(config)}
    for name, value in vars(config).items():
        if name not in declared:
            raise UserError(unknown(f"{prefix}{name}"))
        if value == MISSING:
            raise UserError(f"{prefix}{name}: required, and not set. Give {prefix}{name}=<value>.")
        if dataclasses.is_dataclass(value):
            _refuse_strays(value, f"{prefix}{name}.")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
