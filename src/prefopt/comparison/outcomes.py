"""The margins of a run per held-out pair, from `report/pairs.jsonl`."""

import hashlib
import json
from array import array
from pathlib import Path

from prefopt.comparison.metrics import is_finite
from prefopt.comparison.records import Outcomes
from prefopt.evaluation.metrics import ACCURACY, MARGIN, REWARD_ACCURACY, REWARD_MARGIN
from prefopt.storage.reading import parse_json, read_file

FILE = "pairs.jsonl"
"""File with one object per held-out pair, as `evaluation.summary.Summary.per_pair` returns them."""
MARGINS = {
    "tuned_margin": (ACCURACY, MARGIN),
    "reward_margin": (REWARD_ACCURACY, REWARD_MARGIN),
}
"""Key of a line -> two metrics: the share of its values that are above zero, and their mean."""


def read_outcomes(report: Path, held_out_data: str | None) -> Outcomes | None:
    """Reads the margins per pair; None if the folder has no such file.

    Args:
        report: The folder `report/` of a run.
        held_out_data: Digest of the held-out data: the same file:line of other data is another pair.

    Raises:
        ValueError: The file is damaged.
    """
    path = report / FILE
    if not path.is_file():
        return None
    try:
        rows = parse_json(b"[" + read_file(path).strip().replace(b"\n", b",") + b"]")
        sources = [row["source"] for row in rows]
        margins = {key: array("d", [row[key] for row in rows]) for key in MARGINS if _is_whole(rows, key)}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{FILE} is damaged ({error})") from error
    digest = hashlib.sha256(json.dumps([held_out_data, sources]).encode()).hexdigest()
    return Outcomes(digest, margins) if margins else None


def _is_whole(rows: list[dict[str, object]], key: str) -> bool:
    return bool(rows) and all(is_finite(row.get(key)) for row in rows)


def outcomes_of(outcomes: Outcomes, metric: str) -> list[float] | None:
    """Returns the numbers per pair whose mean is `metric`; None if the metric is no mean over held-out pairs."""
    for key, (share, mean) in MARGINS.items():
        if key in outcomes.margins and metric in (share, mean):
            margins = outcomes.margins[key]
            return [float(margin > 0) for margin in margins] if metric == share else list(margins)
    return None
