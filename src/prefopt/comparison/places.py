"""Where runs lie: single run folders, sweeps with their plan, and folders that hold runs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.comparison.settings import from_typed
from prefopt.errors import UserError

PLAN = "sweep.json"
"""In a sweep's folder: its points, so that those that have not begun are known too."""
NOT_RUN = re.compile(r"slurm|reference(-\d+)?", re.ASCII)
"""Beside the runs of a sweep: its jobs, and the reference log-probs that were computed first."""
TRACES = ("config.yaml", "status.json", "metrics.jsonl")
"""Any of these makes a folder a run, even one that was killed as it began."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run to read. `changes` are the settings of its point in a sweep, by dotted name."""

    path: Path
    name: str
    changes: Mapping[str, Any]

    @property
    def has_begun(self) -> bool:
        return _is_run(self.path)


def find_places(targets: Sequence[Path]) -> list[Place]:
    """The runs below run folders, sweep folders and folders of either, each once, with distinguishable names.

    Raises:
        UserError: A folder that is not there, or that holds no run; a damaged plan of a sweep.
    """
    places: dict[Path, Place] = {}
    for target in targets:
        found = list(_find(target))
        if not found:
            raise UserError(
                f"{target}: holds no runs (no config.yaml in it or in its folders, no {PLAN}). "
                "Give run folders, sweep folders, or a W&B group as entity/project/group."
            )
        for place in found:
            places.setdefault(place.path.resolve(), place)
    return _with_distinct_names(list(places.values()))


def title_of(targets: Sequence[Path]) -> str:
    """What is compared, in a few words."""
    if len(targets) == 1:
        return targets[0].resolve().name or str(targets[0])
    return f"{targets[0].resolve().name} and {len(targets) - 1} more"


def _find(target: Path) -> Iterator[Place]:
    if not target.is_dir():
        raise UserError(
            f"{target}: no such folder. Give run folders, sweep folders, or a W&B group as entity/project/group."
        )
    if _is_run(target):
        yield Place(target, target.resolve().name, {})
        return
    yield from _members(target)
    for child in _folders(target):
        if (child / PLAN).is_file():
            yield from _members(child)


def _members(folder: Path) -> Iterator[Place]:
    """The points of a sweep in their order, then other runs beside them."""
    planned = _read_plan(folder / PLAN) if (folder / PLAN).is_file() else {}
    for name, changes in planned.items():
        yield Place(folder / name, name, changes)
    for child in _folders(folder):
        if child.name not in planned and _is_run(child):
            yield Place(child, child.name, {})


def _read_plan(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
        planned: dict[str, Mapping[str, Any]] = {
            str(point["name"]): {key: from_typed(value) for key, value in (point.get("changes") or {}).items()}
            for point in points
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: not the plan of a sweep ({type(error).__name__}: {error}). It holds {{"points": [{{"name": ..., '
            f'"changes": {{...}}}}]}}. Give the run folders one by one, or start the sweep again to write it.'
        ) from error
    strays = [name for name in planned if Path(name).name != name]
    if strays:
        raise UserError(f"{path}: {strays[0]!r} is no plain folder name, so it cannot be a run of this sweep.")
    return planned


def _folders(folder: Path) -> list[Path]:
    children = (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return sorted(child for child in children if not NOT_RUN.fullmatch(child.name))


def _is_run(folder: Path) -> bool:
    return any((folder / trace).is_file() for trace in TRACES)


def _with_distinct_names(places: list[Place]) -> list[Place]:
    """Runs of one name get as many of their parents' names as it takes."""
    named: list[tuple[str, ...]] = [(place.name,) for place in places]
    parents = [place.path.resolve().parent.parts for place in places]
    for depth in range(1, max(map(len, parents), default=0) + 1):
        counts: dict[tuple[str, ...], int] = {}
        for name in named:
            counts[name] = counts.get(name, 0) + 1
        if max(counts.values(), default=1) == 1:
            break
        named = [
            (*parts[-depth:], place.name) if counts[name] > 1 else name
            for name, parts, place in zip(named, parents, places, strict=True)
        ]
    return [Place(place.path, "/".join(name), place.changes) for place, name in zip(places, named, strict=True)]
