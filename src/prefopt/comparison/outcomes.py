"""The margins of a run per held-out pair, and the pairs' prompts, from `report/pairs.jsonl`."""

import hashlib
import json
from array import array
from pathlib import Path

import numpy as np

from prefopt.comparison.metrics import is_finite
from prefopt.comparison.records import Outcomes
from prefopt.evaluation.metrics import ACCURACY, MARGIN, REWARD_ACCURACY, REWARD_MARGIN
from prefopt.evaluation.statistics import Floats
from prefopt.storage.reading import parse_json, read_file

FILE = "pairs.jsonl"
"""File with one object per held-out pair, as `evaluation.summary.Summary.per_pair` returns them."""
PROMPT = "prompt"
"""Key of a line: the number of the pair's prompt. Files of earlier versions lack it."""
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
        prompts = array("q", [row[PROMPT] for row in rows]) if any(PROMPT in row for row in rows) else None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{FILE} is damaged ({error})") from error
    numbers = None if prompts is None else prompts.tolist()
    digest = hashlib.sha256(json.dumps([held_out_data, sources, numbers]).encode()).hexdigest()
    return Outcomes(digest, margins, prompts) if margins else None


def _is_whole(rows: list[dict[str, object]], key: str) -> bool:
    return bool(rows) and all(is_finite(row.get(key)) for row in rows)


def outcomes_of(outcomes: Outcomes, metric: str) -> Floats | None:
    """Returns the numbers per pair whose mean is `metric`; None if the metric is no mean over held-out pairs."""
    for key, (share, mean) in MARGINS.items():
        if key in outcomes.margins and metric in (share, mean):
            margins = np.asarray(outcomes.margins[key])
            return (margins > 0).astype(float) if metric == share else margins
    return None
