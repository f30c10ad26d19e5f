"""Tags of rows: the values of a column (`data.tag`), by which the audit and the report tell their findings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.values import RowError, describe

MAX_TAGS = 20
"""Tags that are told, the most frequent ones; the rows of all others are counted together."""
UNTAGGED = "(none)"


def read_tag(row: Mapping[str, Any], column: str) -> str:
    """Returns the tag of a row as text; empty if it has none.

    Raises:
        RowError: The value is a list or an object.
    """
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise RowError(f"data.tag: '{column}' must be text, a number or a boolean, found {describe(value)}.")
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def fold_tags(tags: Sequence[str]) -> list[str]:
    """Returns the name of each row's tag: its own for the `MAX_TAGS` most frequent, and one for all others together.

    Of tags that are equally frequent, the first in alphabetical order is told. One more than `MAX_TAGS` is told too.
    """
    counts = Counter(tags)
    ranked = sorted(counts, key=lambda tag: (-counts[tag], tag))
    kept = ranked if len(ranked) <= MAX_TAGS + 1 else ranked[:MAX_TAGS]
    names = dict.fromkeys(ranked, f"({len(ranked) - len(kept)} others)") | {tag: tag or UNTAGGED for tag in kept}
    return [names[tag] for tag in tags]
