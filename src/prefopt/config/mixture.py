"""The sources of a data set: files in the simple forms, or parts of a mixture with weights, limits and names."""

import difflib
import glob
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from prefopt.config.ranges import require
from prefopt.process.errors import shorten

KEYS = ("path", "weight", "max_rows", "name")
MAX_WEIGHT = 1000
HUB = "hub:"


@dataclass(frozen=True, slots=True)
class Part:
    """A source of a mixture.

    Attributes:
        path: A file, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.
        name: By which the report tells it apart; by default the file's name without its endings.
        weight: How often each of its training rows is seen in an epoch: 0.5 is half of its prompts, 2 all rows twice.
        max_rows: Most rows of it that are used; None: all.
    """

    path: str
    name: str
    weight: float = 1.0
    max_rows: int | None = None


def is_mixture(spec: object) -> bool:
    """Returns whether a setting such as `data.train` names its sources one by one, as `{path: ..., ...}`."""
    return any(isinstance(item, Mapping) for item in _items(spec))


def paths_of(spec: object) -> list[Any]:
    """Returns the paths in a setting such as `data.train`, whatever its form; nothing for None."""
    return [item.get("path") if isinstance(item, Mapping) else item for item in _items(spec) if item is not None]


def parts_of(spec: object, setting: str) -> list[Part]:
    """Returns the parts of a mixture, each with a name of its own; nothing for the simple forms, which have no parts.

    Args:
        spec: A list of paths and of tables `{path, weight, max_rows, name}`, or one such table.
        setting: Its name, for errors. Only `data.train` has weights: rows are never repeated in an evaluation.

    Raises:
        UserError: A table has an unknown key or a wrong value, or two parts have one name.
    """
    if not is_mixture(spec):
        return []
    items = [item if isinstance(item, Mapping) else {"path": item} for item in _items(spec)]
    for item in items:
        _check(item, setting)
    stems = Counter(_stem(item["path"]) for item in items)
    parts = [
        Part(
            str(item["path"]),
            item.get("name") or _default_name(item["path"], stems),
            1.0 if item.get("weight") is None else float(item["weight"]),
            item.get("max_rows"),
        )
        for item in items
    ]
    names = Counter(part.name for part in parts)
    twice = next((name for name, count in names.items() if count > 1), None)
    require(
        twice is None, f"{setting}: two parts have the name '{twice}'. Give each a name: {{path: ..., name: ...}}."
    )
    return parts


def _items(spec: object) -> list[Any]:
    return list(spec) if isinstance(spec, (list, tuple)) else [spec]


def _check(item: Mapping[Any, Any], setting: str) -> None:
    unknown = [str(key) for key in item if key not in KEYS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        require(False, f"{setting}: a part has no key {shorten(unknown[0])}; it has {', '.join(KEYS)}.{meant}")
    path, weight, rows, name = (item.get(key) for key in KEYS)
    require(isinstance(path, str) and path != "", f"{setting}: a part needs a path, found {shorten(str(dict(item)))}.")
    where = f"{setting}: {path}:"
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    require(
        weight is None or (is_number and 0 < weight <= MAX_WEIGHT),
        f"{where} weight must be above 0 and at most {MAX_WEIGHT}, found {shorten(str(weight))}. To leave a part out, "
        "remove it.",
    )
    require(
        weight in (None, 1) or setting == "data.train",
        f"{where} weight={weight}: rows are weighted in data.train only, since an evaluation counts each row once. "
        "Leave weight out, or limit the rows with max_rows.",
    )
    is_count = isinstance(rows, int) and not isinstance(rows, bool)
    require(rows is None or (is_count and rows >= 1), f"{where} max_rows must be >= 1, found {shorten(str(rows))}.")
    require(
        name is None or (isinstance(name, str) and name.strip() != ""),
        f"{where} name must be text, found {shorten(str(name))}.",
    )


def _stem(path: str) -> str:
    """Returns the file's name without endings; for a pattern its folder's, for a data set of the hub its id."""
    if path.startswith(HUB):
        return path.removeprefix(HUB)
    pure = PurePath(path)
    pure = next((each for each in (pure, *pure.parents) if not glob.has_magic(each.name)), pure)
    return pure.name.split(".")[0] or path


def _default_name(path: str, stems: Counter[str]) -> str:
    stem = _stem(path)
    return stem if stems[stem] == 1 else f"{PurePath(path).parent.name}/{stem}"
