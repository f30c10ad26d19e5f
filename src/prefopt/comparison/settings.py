"""Reads the settings of runs as flat values; finds those that differ, and runs that differ only in their seed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.comparison.records import SEED
from prefopt.config.load import MAY_CHANGE, NOT_IDENTITY, ONLY_WHEN_SET, is_unset
from prefopt.runs.files import LARGEST
from prefopt.storage.reading import parse_yaml, read_file

MISSING = "\u2014"
"""Text shown for a setting or number that a run does not have."""
Settings = Mapping[str, Any]
WRITTEN_ALONE = frozenset({*MAY_CHANGE, "data.tag"})
"""Settings by which runs train the same and write something else."""
VAGUE = frozenset({"path", "train", "held_out", "pairs", "method", "mode", "stage", "r", "alpha", "format"})
"""Last parts of dotted names that are not clear without the first part."""


def read_settings(path: Path) -> dict[str, Any]:
    """Reads config.yaml as flat settings, unchecked, so that runs of other versions can be compared too.

    Raises:
        ValueError: The file is not YAML of plain values, or holds no mapping.
        OSError: The file cannot be read.
    """
    values = parse_yaml(read_file(path))
    if not isinstance(values, dict):
        raise ValueError("not a configuration")
    settings = flatten(values)
    for key, value in settings.items():
        if isinstance(value, list) and not _can_be_written(value):
            raise ValueError(f"no {key} can be {str(value)[:40]}")
    return settings


def from_typed(value: object) -> object:
    """Parses the value of a setting as typed in a command: `0.1`, `3e-5`, `null` and `[a,b]` are not strings."""
    if not isinstance(value, str):
        return value
    try:
        parsed = parse_yaml(value)
        return float(parsed) if isinstance(parsed, str) else parsed  # YAML reads 3e-5 as a string
    except ValueError:
        return value


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Flattens nested groups to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def identity_but_seed(settings: Settings) -> str:
    """Returns a text that is equal for runs that compute the same thing except for `run.seed`."""
    given = {key: value for key, value in settings.items() if key not in ONLY_WHEN_SET or not is_unset(value)}
    decisive = {key: value for key, value in given.items() if decides(key) and key != SEED}
    return json.dumps(decisive, sort_keys=True, default=str)


def decides(key: str) -> bool:
    """Whether a setting changes what a run trains: of its fingerprint, all but those that change what is written."""
    if key in WRITTEN_ALONE:
        return False
    group, _, name = key.partition(".")
    if group not in NOT_IDENTITY:
        return True
    derived = NOT_IDENTITY[group]
    return derived is not None and name.split(".")[0] not in derived


def differing(runs: Iterable[Settings]) -> list[str]:
    """Returns the settings with several values among the runs that have them, in the order of the configuration."""
    seen: dict[str, set[str]] = {}
    for settings in runs:
        for key, value in settings.items():
            seen.setdefault(key, set()).add(_canonical(value))
    return [key for key, values in seen.items() if len(values) > 1 and decides(key) and key != SEED]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Returns dotted name -> column header: `beta`; `algorithm` for algorithm.name; the whole name if unclear."""
    keys = list(keys)
    lasts = [key.rpartition(".")[2] for key in keys]
    names = {}
    for key, last in zip(keys, lasts, strict=True):
        group = key.removesuffix(".name")
        is_plain = lasts.count(last) == 1 and last not in VAGUE
        names[key] = group if group != key else last if is_plain else key
    return names


def as_text(value: object) -> str:
    """Formats a value as one would type it, floats as short as is exact."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(as_text(item) for item in value)}]"
    return str(value)


def shown(settings: Settings, key: str) -> str:
    """Returns the setting's value as text; a dash if there is none."""
    return as_text(settings[key]) if key in settings else MISSING


def _canonical(value: object) -> str:
    """Returns a text that is equal for equal values: 1 equals 1.0, but a string never equals a number."""
    if isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, int | float):
        return as_text(float(value)) if abs(value) < LARGEST else repr(value)
    return json.dumps(value, sort_keys=True, default=str)


def _can_be_written(value: Any) -> bool:
    """Returns whether a value can be compared as text: in YAML, a table in it may have keys that are no text."""
    try:
        json.dumps(value, sort_keys=True, default=str)
    except TypeError:
        return False
    return True
