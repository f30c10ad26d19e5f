"""Finds held-out and test files of a preset that do not belong to the training data of a run.

A preset or an experiment chooses these files for the training file that it names itself. A run with another
training file must not be evaluated on the held-out files of the original one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefopt.config.composition import Composed
from prefopt.config.config_dir import included, read
from prefopt.process.paths import places, shipped

GO_WITH_TRAIN = ("data.held_out", "data.test", "evaluation.pairs")


def find_left_out(composed: Composed) -> dict[str, object]:
    """The settings of `GO_WITH_TRAIN`, with values, that were chosen for another training file than the run's."""
    values = {key: composed.value(key) for key in GO_WITH_TRAIN if key not in composed.named}
    train = composed.value("data.train")
    found = {}
    for key, value in values.items():
        beside = None if value is None else _train_beside(composed, key)
        if beside is not None and places(beside) != places(train):
            found[key] = value
    return found


def _train_beside(composed: Composed, key: str) -> object:
    """The training data of the experiment or preset that sets `key`; None if it names none."""
    for name in _experiments(composed):
        if _sets(_read(composed, name), key):
            is_of_data = any(_names_data(composed, each) for each in (name, *_parents(composed, name)))
            return composed.preset([name.replace("/", "=", 1)]).value("data.train") if is_of_data else None
    if key.startswith("data."):
        return composed.preset([f"data={composed.choices['data']}"]).value("data.train")
    return None


def _experiments(composed: Composed) -> Iterator[str]:
    """The chosen experiment and those that it builds on; earlier ones override later ones."""
    chosen = composed.choices.get("experiment")
    if chosen is not None:
        yield f"experiment/{chosen}"
        yield from _parents(composed, f"experiment/{chosen}")


def _parents(composed: Composed, name: str) -> Iterator[str]:
    for parent in reversed(list(included(name, _read(composed, name).get("defaults", [])))):
        if parent.startswith("experiment/") and _find(composed, parent).is_file():
            yield parent
            yield from _parents(composed, parent)


def _names_data(composed: Composed, name: str) -> bool:
    values = _read(composed, name)
    chosen = included(name, values.get("defaults", []))
    return _sets(values, "data.train") or any(each.startswith("data/") for each in chosen)


def _sets(values: dict[Any, Any], key: str) -> bool:
    group, _, name = key.partition(".")
    return isinstance(values.get(group), dict) and name in values[group]


def _read(composed: Composed, name: str) -> dict[Any, Any]:
    return read(_find(composed, name))


def _find(composed: Composed, name: str) -> Path:
    folders = [shipped("conf"), *([] if composed.config_dir is None else [Path(composed.config_dir)])]
    return next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), Path(f"{name}.yaml"))
