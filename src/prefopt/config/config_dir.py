"""Finds the fault, with its line, in a file of the user's own config folder (`--config-dir`)."""

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.ranges import check_usable
from prefopt.process.errors import UserError, shorten

FORMS = "Write one entry a line, such as `- override /data: files` or `- _self_`"


def find_fault(folder: Path, overrides: Sequence[str] = ()) -> UserError | None:
    """The first fault in the folder's files that keeps Hydra from composing them; None if there is none.

    Args:
        folder: Folder of config groups.
        overrides: Files that these choose, such as `cluster=mine`, are checked before all others.
    """
    defaults: dict[str, list[Any]] = {}
    chosen = {override.lstrip("+~") for override in overrides}
    paths = sorted(folder.rglob("*.yaml"))
    for path in sorted(paths, key=lambda path: f"{path.parent.name}={path.stem}" not in chosen):
        try:
            values = read(path)
            for key, value in values.items():
                check_usable(f"{path}: {key}", value)
            defaults[path.relative_to(folder).with_suffix("").as_posix()] = _defaults_of(path, values)
        except UserError as error:
            return error
    return _find_cycle(folder, defaults)


def read(path: Path) -> dict[Any, Any]:
    """The content of a config file as it is written, `${...}` and its list of defaults included.

    Raises:
        UserError: It cannot be read, or holds no settings.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Allow it, or name another --config-dir."
        ) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is no UTF-8. Save the file as UTF-8."
        ) from error
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path}:{_describe(error)}") from error
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, AssertionError, ValueError) as error:
        raise UserError(f"{path}:1: must hold settings as `name: value`, found {_shown(text)}.") from error
    _require(isinstance(values, dict), path, 1, "must hold settings as `name: value`, found", text)
    assert isinstance(values, dict)
    return values


def _describe(error: yaml.MarkedYAMLError) -> str:
    """The line of a YAML error, its problem, and what to do."""
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or error.context)
    begun = error.context_mark
    opened = f" (begun in line {begun.line + 1})" if begun and mark and begun.line != mark.line else ""
    if "\\t" in problem:
        remedy = "Indent with blanks, not tabs"
    elif "duplicate key" in problem:
        remedy = "Keep one of the two"
    elif "quoted scalar" in str(error.context):
        remedy = "Close the quote"
    else:
        remedy = "Mend the line; quote text that holds : # { [ or &"
    return f"{mark.line + 1 if mark else 1}: {problem}{opened}. {remedy}."


def _require(condition: bool, path: Path, line: int, message: str, found: object) -> None:
    if not condition:
        raise UserError(f"{path}:{line}: {message} {_shown(found)}.")


def _shown(found: object) -> str:
    return shorten(repr(str(found).strip().splitlines()[0]))


def _defaults_of(path: Path, values: dict[Any, Any]) -> list[Any]:
    """The file's list of defaults; an entry of a form that Hydra does not know is refused."""
    if "defaults" not in values:
        return []
    entries = values["defaults"]
    line = _line_of(path, "defaults")
    _require(isinstance(entries, list), path, line, f"defaults must be a list. {FORMS}; found", entries)
    for entry in entries:
        is_known = isinstance(entry, str) or (
            isinstance(entry, dict)
            and len(entry) == 1
            and all(isinstance(key, str) and isinstance(value, str | list | None) for key, value in entry.items())
        )
        _require(is_known, path, line, f"not an entry of a list of defaults. {FORMS}; found", entry)
    return list(entries)


def _line_of(path: Path, name: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, text in enumerate(lines, start=1) if text.startswith(name)), 1)


def _find_cycle(folder: Path, defaults: dict[str, list[Any]]) -> UserError | None:
    """The error of a file that includes itself, directly or through others; None if there is none."""
    below = {
        name: [each for each in included(name, entries) if each in defaults] for name, entries in defaults.items()
    }
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        name, *others = reversed(error.args[1])
        path = folder / f"{name}.yaml"
        way = " -> ".join(f"{each}.yaml" for each in (name, *others))
        return UserError(
            f"{path}:{_line_of(path, 'defaults')}: includes itself ({way}). Take the entry out of its defaults; a "
            "file that builds on a shipped one of the same name needs another name."
        )
    return None


def included(name: str, entries: list[Any]) -> Iterator[str]:
    """The files that a list of defaults names, as paths in the config folder without ending."""
    group = name.rpartition("/")[0]
    for entry in entries:
        key, options = ("", entry) if isinstance(entry, str) else next(iter(entry.items()))
        subgroup = key.partition("@")[0].split(" ")[-1]  # without "override" and "optional"
        for option in options if isinstance(options, list) else [options]:
            path = f"{subgroup}/{option}" if subgroup else str(option)
            path = path.partition("@")[0].removesuffix(".yaml")
            yield path[1:] if path.startswith("/") else f"{group}/{path}".removeprefix("/")
