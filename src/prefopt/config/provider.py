"""Systems for which data can be written: the layout of their rows, what they accept, and since when that is known.

Each is a file of `conf/provider/`, or of the same folder under `--config-dir`.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.algorithms import Kind
from prefopt.config.aliases import nearest
from prefopt.config.catalog import read_options
from prefopt.config.choices import DataFormat
from prefopt.config.ranges import require
from prefopt.process.errors import UserError, explained, first_line

PROVIDER = "provider"
"""The config group."""
KINDS: tuple[Kind, ...] = ("preference", "sft")


class Known(Enum):
    """How a fact is known: from the provider's documentation, its source code, or only from others."""

    docs = "from docs"
    code = "read in source"
    unverified = "unverified"


class LimitName(Enum):
    """Limits of a file; `max_tokens` is one of a row."""

    min_rows = "fewest rows"
    recommended_rows = "rows recommended at least"
    max_rows = "most rows"
    max_bytes = "largest file, bytes"
    max_tokens = "most tokens of a row"


class RuleName(Enum):
    """What a provider asks of each row, beyond what its layout can hold."""

    roles = "only these roles"
    alternate = "user and assistant take turns"
    begins_with_user = "the user speaks first, after a system prompt"
    one_turn = "one question of the user"
    one_output = "each answer is one message"
    no_tools = "no tools"
    no_weights = "every answer is trained"
    no_empty_text = "no empty message"
    no_text = "not these texts"


@dataclass(kw_only=True)
class Fact:
    """How a number, a rule or a state of things is known."""

    known: Known = MISSING
    source: str = MISSING
    """Where it stands: an address, or a repository and a file."""
    date: str = MISSING
    """Month in which it was read there: YYYY-MM."""


@dataclass(kw_only=True)
class Limit(Fact):
    """A number that a file or a row may not pass. One that is `unverified` is said, and refuses nothing."""

    name: LimitName = MISSING
    value: int = MISSING
    rows: list[str] = field(default_factory=lambda: list(KINDS))
    """Kinds of rows for which it holds."""


@dataclass(kw_only=True)
class Rule(Fact):
    """A property that each row must have."""

    name: RuleName = MISSING
    value: list[str] = field(default_factory=list)
    """For `roles` and `no_text`: the roles, the texts."""
    rows: list[str] = field(default_factory=lambda: list(KINDS))
    """Kinds of rows for which it holds."""


@dataclass(kw_only=True)
class Note(Fact):
    """A sentence for those who convert data for this provider."""

    text: str = MISSING


@dataclass(kw_only=True)
class ProviderConfig:
    """Other systems, for which prefopt convert writes data: the rows that they take, and their limits."""

    title: str = MISSING
    """Its name in messages."""
    layout: DataFormat = MISSING
    """Layout of its rows: a format that can be written."""
    rows: list[str] = field(default_factory=lambda: list(KINDS))
    """Kinds of rows that it takes: preference, sft."""
    limits: list[Limit] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        for kinds in (self.rows, *(limit.rows for limit in self.limits), *(rule.rows for rule in self.rules)):
            unknown = sorted(set(kinds) - set(KINDS))
            require(not unknown, f"rows: must be of {', '.join(KINDS)}, found {', '.join(unknown)}.")


def read_provider(name: str, config_dir: str | None = None) -> ProviderConfig:
    """Returns the provider of this name.

    Args:
        name: Name of a file in `conf/provider/`, without its ending.
        config_dir: A folder of the user's own config groups.

    Raises:
        UserError: There is none, or its file holds something else than a provider.
    """
    options = {option.name: option.path for option in read_options(config_dir).get(PROVIDER, [])}
    if name not in options:
        near = nearest(name, list(options))
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"--to {name}: no such system. {hint}There are: {', '.join(options)}.")
    return _read(options[name])


def _read(path: Path) -> ProviderConfig:
    try:
        with explained(path):
            values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ProviderConfig), values))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {first_line(error)} Compare with the files that ship: conf/{PROVIDER}.") from error
    assert isinstance(config, ProviderConfig)
    return config
