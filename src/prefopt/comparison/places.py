"""Finds the runs to compare, each once and with a unique name."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from prefopt.process.errors import UserError
from prefopt.runs.find import REPORT, Group, Kind, Place, find_groups

OTHERS = ", or a W&B group as entity/project/group"


def find_places(targets: Sequence[Path]) -> list[Place]:
    """Finds the runs in run folders, sweep folders and folders of either; each run once, with a unique name.

    Raises:
        UserError: A folder does not exist or holds no run with results, or the plan of a sweep is damaged.
    """
    groups = [group for target in targets for group in find_groups([target], others=OTHERS)]
    places: dict[Path, Place] = {}
    for place in (place for group in groups for place in _members(group)):
        places.setdefault(place.report.resolve(), place)
    if targets and not places:
        named = ", ".join(map(str, targets))
        raise UserError(
            f"{named}: holds nothing but what prefopt prepare made, or pairs of prefopt sample: no results to compare."
        )
    return _with_distinct_names(list(places.values()))


def title_of(targets: Sequence[Path]) -> str:
    """Returns the title of a comparison of these folders."""
    if len(targets) == 1:
        return targets[0].resolve().name or str(targets[0])
    return f"{targets[0].resolve().name} and {len(targets) - 1} more"


def _members(group: Group) -> Iterable[Place]:
    """The runs of a group that train; of a sweep its points in order, then other runs beside them."""
    own = [place for place in group.places if place.kind.trains]
    if group.is_sweep:
        return sorted(own, key=lambda place: place.kind is Kind.run)
    if group.path is not None:
        return own
    return [replace(place, name=_short_name(place)) for place in own]


def _short_name(place: Place) -> str:
    name = place.run.path.resolve().name
    return name if place.evaluation == REPORT else f"{name}/{place.evaluation}"


def _with_distinct_names(places: list[Place]) -> list[Place]:
    """Prefixes runs of equal names with as many names of parent folders as make them distinct."""
    named: list[tuple[str, ...]] = [(place.name,) for place in places]
    parents = [place.run.path.resolve().parent.parts for place in places]
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
