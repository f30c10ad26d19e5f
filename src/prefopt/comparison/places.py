"""Where runs lie: single run folders, sweeps with their plan, and folders that hold runs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefopt.comparison.settings import from_typed
from prefopt.process.errors import UserError
from prefopt.sweeps.folder import FILE, IS_REFERENCE, SweepFolder, is_run, list_runs

REPORT = "report"
BEGUN = ("config.yaml", "status.json", "metrics.jsonl")
"""Any of these tells that a run has begun, even one that was killed as it did."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run to read.

    Attributes:
        path: Its folder.
        name: What it is called; unique in a comparison.
        changes: The settings of its point in a sweep, by dotted name.
        evaluation: Name of the folder in it that holds the report: another one than `report` is of a later
            evaluation on other data.
    """

    path: Path
    name: str
    changes: Mapping[str, Any]
    evaluation: str = REPORT

    @property
    def report(self) -> Path:
        return self.path / self.evaluation

    @property
    def is_later(self) -> bool:
        """The report is of other data than the run's own."""
        return self.evaluation != REPORT

    @property
    def has_begun(self) -> bool:
        return any(os.path.isfile(self.path / file) for file in BEGUN)


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
                f"{target}: holds no runs (no config.yaml in it or in its folders, no {FILE}). "
                "Give run folders, sweep folders, or a W&B group as entity/project/group."
            )
        for place in found:
            places.setdefault(place.report.resolve(), place)
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
    if SweepFolder(target).exists():
        yield from _members(SweepFolder(target))
    elif is_run(target):
        yield Place(target, target.resolve().name, {})
    elif (target / "report.json").is_file() and is_run(target.resolve().parent):
        run = target.resolve().parent
        name = run.name if target.resolve().name == REPORT else f"{run.name}/{target.resolve().name}"
        yield Place(run, name, {}, target.resolve().name)
    else:
        runs, sweeps = list_runs(target)
        yield from (Place(run, run.name, {}) for run in runs)
        for sweep in sweeps:
            yield from _members(SweepFolder(sweep))


def _members(sweep: SweepFolder) -> Iterator[Place]:
    """The points of a sweep in their order, then other runs beside them, but not those whose work the points share."""
    planned = sweep.read_changes()
    for name, changes in planned.items():
        yield Place(sweep.path / name, name, {key: from_typed(value) for key, value in changes.items()})
    for run in list_runs(sweep.path)[0]:
        if run.name not in planned and not IS_REFERENCE.fullmatch(run.name):
            yield Place(run, run.name, {})


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
    return [replace(place, name="/".join(name)) for place, name in zip(places, named, strict=True)]
