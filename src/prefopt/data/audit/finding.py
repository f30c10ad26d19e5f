"""The finding of checks that tell of each row alone whether something is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Example, Found, Sides


def conclude_rows(
    seen: Sequence[tuple[str, int, NDArray[np.int64]]],
    sides: Sides,
    *,
    what: str,
    remedy: str,
    examples: Sequence[Example],
    values: Mapping[str, Any],
) -> Found:
    """Returns the finding that some rows have something.

    Args:
        seen: Split and start of each chunk, and its rows concerned, counted from 0 within the chunk, ascending.
        sides: The records.
        what: What the rows have, in the plural.
        remedy: What to do about it; left out if no row has it.
        examples: As many as there are, or more than are shown.
        values: As in the finding.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {}
    for split, start, rows in seen:
        parts.setdefault(split, []).append(rows + start)
    found = {split: np.concatenate(rows) for split, rows in parts.items()}
    count = sum(map(len, found.values()))
    num_rows = sum(map(len, sides.records.values()))
    return Found(
        rows=found,
        num_rows=num_rows,
        share=count / num_rows if num_rows else 0.0,
        summary=f"{count} of {num_rows} rows have {what}" if count else f"no row has {what}",
        remedy=remedy if count else "",
        examples=examples[:MAX_EXAMPLES],
        values=dict(values),
    )
