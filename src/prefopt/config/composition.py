"""Turns overrides into dataclasses: Hydra composes a tree of `conf/`; settings outside its schema are refused."""

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from prefopt.config.aliases import ALIASES, MAX_NAME, mistyped, nearest
from prefopt.config.catalog import find_folder
from prefopt.config.config_dir import find_fault
from prefopt.config.hydra_state import own_hydra
from prefopt.config.overrides import parse, quote, typed
from prefopt.config.ranges import check_usable, require
from prefopt.process.errors import SHOWN, UserError, shorten
from prefopt.process.paths import expand, shipped

MAX_TEXT = 4096
"""Most characters of a value on the command line: as many as a path may have."""


@dataclass(frozen=True)
class Tree:
    """A primary file of `conf/` with the schema of its composed configuration.

    Attributes:
        primary: Name of the file, and of the command that reads it.
        root: The schema, a dataclass.
        variants: For each group whose options have their own schemas, the schema by the option's name.
        open_tables: Settings that take any key, such as "trainer.extra".
        nested_groups: Groups within a group, such as "data/gate": their options set `data.gate`.
    """

    primary: str
    root: type[Any]
    variants: Mapping[str, Mapping[str, type[Any]]] = field(default_factory=dict)
    open_tables: Sequence[str] = ()
    nested_groups: Sequence[str] = ()

    def compose(self, overrides: Sequence[str], config_dir: str | None = None) -> "Composed":
        """Composes the tree.

        Args:
            overrides: Hydra overrides, as on the command line.
            config_dir: A folder of the user's own config groups.

        Raises:
            UserError: An unknown, mistyped, missing or contradictory setting.
        """
        with own_hydra():
            return self._compose(overrides, config_dir)

    def _compose(self, overrides: Sequence[str], config_dir: str | None) -> "Composed":
        parsed = parse(overrides)
        lines = [self.normalise(override) for override in parsed]
        experiments = [override for override in parsed if override.key_or_group == "experiment"]
        require(
            len(experiments) < 2,
            f"experiment: a run has one, found {len(experiments)}. To build one on another, write a file of your own "
            "whose defaults list names it (--config-dir).",
        )
        store = ConfigStore.instance()
        store.store(name=f"{self.primary}_schema", node=self.root)
        for group, schemas in self.variants.items():
            for name, schema in schemas.items():
                store.store(group=group, name=f"base_{name}", node=schema)
        folder = None if config_dir is None else find_folder(config_dir)
        if folder is not None:
            lines.append(f"hydra.searchpath=[{quote(f'file://{folder}')}]")
        try:
            with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
                config = compose(self.primary, lines, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise self._readable(error, config_dir) from error
        except (YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
            fault = None if folder is None else find_fault(folder, overrides)
            if fault is None:
                raise
            raise fault from error
        chosen = {group: None if name is None else str(name) for group, name in config.hydra.runtime.choices.items()}
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        settings = [override for override in parsed if not self.is_choice(override.key_or_group, override.value())]
        named = {key for override in settings for key in _keys(override.key_or_group, override.value())}
        options = tuple(str(override.input_line) for override in parsed if override not in settings)
        return Composed(self, config, chosen, options, frozenset(named), config_dir)

    def build(self, composed: DictConfig) -> Any:
        """Turns a composed config into dataclasses; the only place where a DictConfig becomes typed."""
        try:
            self._refuse_other_kinds(composed)
            config = OmegaConf.to_object(composed)
        except MissingMandatoryValue as error:
            key = str(getattr(error, "full_key", None) or "a setting")
            raise UserError(f"{key}: required, and not set. Give {key}=<value>.") from error
        except OmegaConfBaseException as error:
            raise self._readable(error) from error
        assert isinstance(config, self.root)
        self._check_values(config, "")
        return config

    def _refuse_other_kinds(self, composed: DictConfig) -> None:
        """Refuses a setting for a list or a table whose reference (`${...}`) leads to something else."""
        for key, kind in self._containers.items():
            value = OmegaConf.select(composed, key)
            if value is not None and not isinstance(value, kind):
                what = "a list" if kind is ListConfig else "a table of keys and values"
                raise UserError(f"{key}: must be {what}, found {shorten(repr(value))}.")

    def build_from(self, values: dict[str, object], variants: Mapping[str, str], where: str) -> Any:
        """Turns plain values into dataclasses; `where` is their source in errors, `variants` one option per group."""
        try:
            chosen = {group: self.variants[group][name]() for group, name in variants.items()}
            merged = OmegaConf.merge(OmegaConf.structured(self.root(**chosen)), values)
            assert isinstance(merged, DictConfig)
            return self.build(merged)
        except ValidationError as error:
            raise UserError(f"{where}: {self._readable(error)}") from error
        except (KeyError, TypeError, OmegaConfBaseException) as error:
            raise UserError(f"{where}: not a configuration of this version of prefopt ({error}).") from error

    def normalise(self, override: Override) -> str:
        """Checks one override's key against the schema and drops a needless `+` or `++`.

        So a `+` cannot bypass the schema: an unknown setting is refused by name.
        """
        key = override.key_or_group
        line = override.input_line or ""
        bare = line.lstrip("+")
        if key.startswith("hydra.searchpath"):
            return line
        if key.startswith("hydra"):
            raise UserError(
                f"{key}: hydra's own settings have no effect here. See python -m prefopt.{self.primary} --help."
            )
        if override.is_delete():
            raise UserError(f"~{key}: a setting cannot be removed. Set it to a value (null where it allows one).")
        if override.is_sweep_override():
            text = bare.partition("=")[2]
            quoted = f" If it is text, type {typed(key, text)} in a shell." if len(text) <= SHOWN else ""
            raise UserError(f"{key}: one run takes one value, found several ({shorten(text)}).{quoted}")
        value = override.value()
        if override.package is not None:
            raise UserError(f"{shorten(bare)}: a group stands in one place. Write {key}=<option>.")
        if key in _folders() and not _is_option(value, may_hold_settings=key != "experiment"):
            raise UserError(f"{shorten(bare)}: an option is a name, one of the files in conf/{key}.")
        is_short = not isinstance(value, str) or len(value) <= MAX_TEXT
        require(is_short, f"{key}: must have at most {MAX_TEXT:,} letters, found {shorten(str(value))}.")
        if key == "experiment":
            return f"+{bare}"  # Hydra requires the + for a group that no default names
        if self.is_in_table(key):
            return f"++{bare}"
        if not self.knows(key):
            raise UserError(self.unknown(key))
        if key in self._text_settings and isinstance(value, bool | int | float):
            return f"{key}={quote(bare.partition('=')[2].strip())}"  # else 007 would become 7, and 12_3 123
        check_usable(key, value)
        return bare

    def is_choice(self, key: str, value: object) -> bool:
        """True for an override that chooses an option or a search path, and sets no single setting."""
        is_group = key in (*self.group_names(), "experiment") and not isinstance(value, dict)
        return is_group or key.startswith("hydra")

    def knows(self, key: str) -> bool:
        """True for a setting, a group, or a key of an open table."""
        return self.is_in_table(key) or key in self.setting_names() or key in self.group_names()

    def is_in_table(self, key: str) -> bool:
        """True for an open table and its keys."""
        return any(key == table or key.startswith(f"{table}.") for table in self.open_tables)

    def group_names(self) -> list[str]:
        """The config groups."""
        return [*(f.name for f in dataclasses.fields(self.root)), *self.nested_groups]

    def setting_names(self) -> list[str]:
        """The dotted names of all settings, of every variant."""
        return list(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """The type of every setting by dotted name, of every variant."""
        settings: dict[str, Any] = {}
        for root in self._roots():
            settings |= _leaves(root, "")
        return settings

    @cached_property
    def _containers(self) -> dict[str, type[ListConfig] | type[DictConfig]]:
        """OmegaConf's container class for each setting that is a list or a table."""
        nodes: dict[Any, type[Any]] = {list: ListConfig, dict: DictConfig}
        origins = {key: {get_origin(kind), *map(get_origin, get_args(kind))} for key, kind in self._settings.items()}
        return {key: nodes[origin] for key, found in origins.items() for origin in found if origin in nodes}

    @cached_property
    def _text_settings(self) -> set[str]:
        return {name for name, kind in self._settings.items() if kind in (str, str | None)}

    def unknown(self, key: str) -> str:
        """The message for a setting that does not exist, with the one that was probably meant."""
        group, _, name = key.rpartition(".")
        meant = [each for each in ALIASES.get(name.lower().replace("-", "_"), ()) if self.knows(each)]
        meant = meant or mistyped(key, [*self.setting_names(), *self.group_names(), "experiment"])
        same = [each for each in self.setting_names() if each.rpartition(".")[2] == name] if name else []
        groups = [*self.group_names(), "experiment"]
        if key.replace(".", "/") in self.nested_groups:
            hint = f"An option is chosen by {key.replace('.', '/')}=<option>."
        elif meant or (same and group):
            hint = f"Did you mean {' or '.join(meant or same)}?"
        elif group in self.group_names():
            inside = [each.partition(".")[2] for each in self.setting_names() if each.startswith(f"{group}.")]
            hint = f"{group} has: {', '.join(inside)}."
        elif same:
            hint = f"There is {' and '.join(same)}; groups: {', '.join(groups)}."
        else:
            hint = f"Groups: {', '.join(groups)}."
        return f"{shorten(key)}: no such setting. {hint}"

    def _roots(self) -> list[Any]:
        """The schema with its defaults, once per variant."""
        alternatives = [
            self.root(**{group: schema()}) for group, schemas in self.variants.items() for schema in schemas.values()
        ]
        return alternatives or [self.root()]

    def _readable(self, error: Exception, config_dir: str | None = None) -> UserError:
        """Turns an error of Hydra or OmegaConf into a `UserError`: the setting first, then what is wrong with it."""
        if isinstance(error.__cause__, UserError):
            return error.__cause__
        # OmegaConf sets causes of its own only in a debugger; their messages lack the values.
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ is not None else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
        where = re.match(r"In '([^']+)': ", str(error))
        file = f"{_file_of(where.group(1), config_dir)}: " if where and where.group(1) != self.primary else ""
        if key and any(re.match(r"Key '[^']+' (is )?not in", line) for line in lines):
            return UserError(file + (self._of_other_variant(key) or self.unknown(key)))
        if key:
            reason = shorten(next(line for line in lines if not line.startswith("In '")).rstrip("."), 300)
            meaning = f" Its meaning and range: prefopt list settings {key}." if key in self._settings else ""
            return UserError(f"{file}{key}: {reason}.{meaning}")
        missing = re.search(r"Could not find '([^']+)'", str(cause))
        if missing:
            group, _, option = missing.group(1).rpartition("/")
            listed = re.search(r"Available options in '[^']+':((?:\n\t\S+)*)", str(cause))
            options = [name for name in (listed.group(1).split() if listed else []) if not name.startswith("base_")]
            near = nearest(option, options)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            return UserError(f"{group}={option}: no such option. {hint}Available: {', '.join(options)}.")
        return UserError(shorten(" ".join(lines), 1000))

    def _of_other_variant(self, key: str) -> str | None:
        if key not in self.setting_names():
            return None
        group = key.split(".")[0]
        schemas = self.variants.get(group, {})
        owners = [name for name, schema in schemas.items() if key in _leaves(self.root(**{group: schema()}), "")]
        return f"{key}: a setting of {group}={', '.join(owners)}, not of the chosen {group}."

    def _check_values(self, config: Any, prefix: str) -> None:
        """Refuses attributes that the dataclasses do not declare (`++` can add them), and unusable values."""
        declared = {f.name for f in dataclasses.fields(config)}
        for name, value in vars(config).items():
            if name not in declared:
                raise UserError(self.unknown(f"{prefix}{name}"))
            if value == MISSING:
                raise UserError(f"{prefix}{name}: required, and not set. Give {prefix}{name}=<value>.")
            if dataclasses.is_dataclass(value):
                self._check_values(value, f"{prefix}{name}.")
            check_usable(f"{prefix}{name}", value)


@dataclass(frozen=True)
class Composed:
    """The result of composing overrides with Hydra.

    Attributes:
        tree: The tree that was composed.
        config: The untyped result.
        choices: The chosen option of each group.
        options: The overrides that chose them.
        named: The settings that overrides set directly.
        config_dir: The folder of the user's own config groups.
    """

    tree: Tree
    config: DictConfig
    choices: dict[str, str | None]
    options: tuple[str, ...]
    named: frozenset[str]
    config_dir: str | None
    _presets: dict[tuple[str, ...], "Composed"] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str | None:
        """The chosen experiment as part of a file name; None if none is chosen."""
        experiment = self.choices.get("experiment")
        return re.sub(r"[^\w.-]+", "-", experiment).strip("-") if experiment else None

    def build(self) -> Any:
        """Turns the result into dataclasses."""
        return self.tree.build(self.config)

    def value(self, key: str) -> Any:
        """The value of a setting; None if it has none."""
        try:
            value = OmegaConf.select(self.config, key, default=None)
        except OmegaConfBaseException as error:
            raise self.tree._readable(error) from error
        return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value

    def preset(self, options: Sequence[str] | None = None) -> "Composed":
        """The result of the chosen options alone, without single settings; or of `options`."""
        lines = self.options if options is None else tuple(options)
        if lines not in self._presets:
            self._presets[lines] = self.tree.compose(lines, self.config_dir)
        return self._presets[lines]

    def changed(self, settings: Sequence[tuple[str, object]]) -> "Composed":
        """A copy with single settings changed, as by overrides after all others; composing again would be slow.

        Raises:
            UserError: An unknown or mistyped setting.
        """
        config = copy.deepcopy(self.config)
        for key, value in settings:
            in_table = self.tree.is_in_table(key)
            if not self.tree.knows(key):
                raise UserError(self.tree.unknown(key))
            try:
                OmegaConf.set_struct(config, True)
                OmegaConf.update(config, key, value, merge=True, force_add=in_table)  # as Hydra does
            except OmegaConfBaseException as error:
                raise self.tree._readable(error) from error
            OmegaConf.set_struct(config, False)
        named = self.named.union(*(_keys(key, value) for key, value in settings))
        return dataclasses.replace(self, config=config, named=named)


def _keys(key: str, value: object) -> set[str]:
    """The names of all settings that an override sets, `key` included."""
    inner = value.items() if isinstance(value, dict) else ()
    return {key}.union(*(_keys(f"{key}.{name}", item) for name, item in inner))


def _is_option(value: object, *, may_hold_settings: bool) -> bool:
    """True for a name, several names, or settings to merge into a group."""
    names = value if isinstance(value, list) else [value]
    are_names = all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
    return are_names or (may_hold_settings and isinstance(value, dict))


def _file_of(name: str, config_dir: str | None) -> str:
    """The file of a config such as `experiment/mine`: in the user's own folder, as it was typed, if it is there."""
    file = f"{name}.yaml"
    is_own = config_dir is not None and (expand(config_dir) / file).is_file()
    return os.path.join(config_dir, file) if config_dir is not None and is_own else f"conf/{file}"


@cache
def _folders() -> set[str]:
    """The groups of `conf/`, including those that are in no schema."""
    return {path.name for path in shipped("conf").iterdir() if path.is_dir()}


def _leaves(config: Any, prefix: str) -> dict[str, Any]:
    """The type of every setting below `prefix`."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        name = f"{prefix}{f.name}"
        found |= _leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: f.type}
    return found
