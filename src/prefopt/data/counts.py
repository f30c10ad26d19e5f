"""Counts of what happened to rows, which add up: those of a part of the rows, and those of the rows that follow."""

from collections import Counter


class Counts:
    """Base of dataclasses whose fields are counts, counts by name, and texts about the first row of a kind."""

    def add(self, later: "Counts") -> None:
        """Adds the counts of rows that follow, which are of the same class; of a text, the first stays."""
        for name, value in vars(later).items():
            own = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, dict(sorted((Counter(own) + Counter(value)).items())))
            else:
                setattr(self, name, own + value if isinstance(value, int) else own or value)
