"""Finds held-out and test files and tags of a preset that do not belong to the data of a run.

A preset or an experiment chooses these files for the training file that it names itself. A run with another
training file must not be evaluated on the held-out files of the original one. The column of the tags is one of all its
files, and others may lack it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefopt.config.composition import Composed
from prefopt.config.config_dir import included, read
from prefopt.process.paths import places, shipped

GO_WITH_TRAIN = ("data.held_out", "data.test", "evaluation.pairs")
TAG, TAGGED = "data.tag", ("data.train", "data.held_out", "data.test")


def find_left_out(composed: Composed) -> dict[str, object]:
    """The settings of `GO_WITH_TRAIN`, with values, that were chosen for another training file than the run's.

    So is `data.tag`, if it was chosen for another file of any split.
    """
    wanted = {**dict.fromkeys(GO_WITH_TRAIN, ("data.train",)), TAG: TAGGED}
    values = {key: composed.value(key) for key in wanted if key not in composed.named}
    return {
        key: value
        for key, value in values.items()
        if value is not None and any(_is_other(composed, key, file) for file in wanted[key])
    }


def _is_other(composed: Composed, key: str, file: str) -> bool:
    """Whether the experiment or preset that sets `key` goes with another file than the run has, as `file` says."""
    preset, own = _preset_of(composed, key), composed.value(file)
    beside = None if preset is None else preset.value(file)
    if preset is None or own is None or (beside is None and file == "data.train"):
        return False
    return beside is None or places(beside) != places(own)


def _preset_of(composed: Composed, key: str) -> Composed | None:
    """The settings of the experiment or preset that sets `key`, without the user's; None if it names no data."""
    for name in _experiments(composed):
        if _sets(_read(composed, name), key):
            is_of_data = any(_names_data(composed, each) for each in (name, *_parents(composed, name)))
            return composed.preset([name.replace("/", "=", 1)]) if is_of_data else None
    if key.startswith("data."):
        return composed.preset([f"data={composed.choices['data']}"])
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
