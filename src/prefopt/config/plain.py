"""Configurations as plain values, for YAML and JSON."""

import dataclasses
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def as_dict(config: object) -> Any:
    """Turns a configuration into plain values: enums become their names, dataclasses dicts, paths text."""
    if dataclasses.is_dataclass(config):
        return {f.name: as_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, dict):
        return {key: as_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_dict(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, Real) and not isinstance(config, bool):
        return int(config) if isinstance(config, Integral) else float(config)  # NumPy's numbers
    return config


def find_strays(config: Any, prefix: str = "") -> list[str]:
    """Names of attributes that somebody has set on a configuration, but that are no settings: `optim.lr`."""
    names = {f.name for f in dataclasses.fields(config)}
    strays = [f"{prefix}{name}" for name in vars(config) if name not in names]
    groups = {name: getattr(config, name) for name in names if dataclasses.is_dataclass(getattr(config, name))}
    return strays + [stray for name, group in groups.items() for stray in find_strays(group, f"{prefix}{name}.")]
