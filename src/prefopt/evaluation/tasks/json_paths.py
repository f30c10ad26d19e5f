"""What JSON values hold, and where: leaves and keys with numbers for their paths."""

from dataclasses import dataclass, field
from typing import Any

Leaf = tuple[int, str, Any]
"""Number of a path, type, value."""


@dataclass
class Paths:
    """Numbers for paths in JSON values, so that a path of a thousand steps costs no more than one of a single step."""

    _numbers: dict[tuple[int, str | int], int] = field(default_factory=dict)

    def number(self, parent: int, step: str | int) -> int:
        """Returns the number of the path that leads one step beyond `parent`; the root is 0."""
        return self._numbers.setdefault((parent, step), len(self._numbers) + 1)

    def leaves(self, value: Any) -> set[Leaf]:
        """Returns the leaves of a value with their paths; an empty list or object is a leaf. 1 and 1.0 are equal."""
        found: set[Leaf] = set()
        open_ends: list[tuple[int, Any]] = [(0, value)]
        while open_ends:
            path, item = open_ends.pop()
            if isinstance(item, dict | list) and item:
                steps = item.items() if isinstance(item, dict) else enumerate(item)
                open_ends += [(self.number(path, step), inner) for step, inner in steps]
            else:
                found.add((path, _type_of(item), None if isinstance(item, dict | list) else item))
        return found


def _type_of(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def keys_of(value: Any, paths: Paths) -> dict[int, str]:
    """Returns the keys of all objects in a value: number of the path -> key; positions in a list are one path."""
    found: dict[int, str] = {}
    open_ends: list[tuple[int, Any]] = [(0, value)]
    while open_ends:
        path, item = open_ends.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                number = paths.number(path, key)
                found[number] = key
                open_ends.append((number, inner))
        elif isinstance(item, list):
            open_ends += [(paths.number(path, -1), inner) for inner in item]
    return found
