"""How much better the chosen answer is by the file's own scores: pairs near 0 are noise, below 0 contradict them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, by_split, say
from prefopt.data.formats.format import SCORES
from prefopt.data.records import PreferencePair

NEAR = 0.05
"""A margin is near 0 if it is at most this share of the median margin; the scale of scores differs from set to set."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 40
"""Bins of the histogram of margins; an even number, so that none straddles 0."""
NO_SCORES = f"the rows have no scores of their answers, such as {' and '.join(SCORES[0])}"
Margins = NDArray[np.float64]


def collect(chunk: Chunk) -> Margins:
    """Returns the margin of each pair, shape (rows,); NaN for one without scores."""
    margins = [record.margin if isinstance(record, PreferencePair) else None for record in chunk.records]
    return np.array(margins, np.float64)


def conclude(seen: Sequence[tuple[str, int, Margins]], sides: Sides) -> Found | str:
    """Returns the pairs of which the scores say nothing, or the opposite of the label."""
    margins = np.concatenate([found for _, _, found in seen])
    scored = margins[~np.isnan(margins)]
    if not len(scored):
        return NO_SCORES
    near = NEAR * float(np.median(np.abs(scored[scored != 0]))) if scored.any() else 0.0
    rows = by_split([(split, start + np.flatnonzero(found <= near)) for split, start, found in seen])
    num_below, num_ties = int((scored < -near).sum()), int((np.abs(scored) <= near).sum())
    count = num_below + num_ties
    places = [(split, row) for split, found in rows.items() for row in found.tolist()]
    worst = sorted(places, key=lambda place: _margin(sides, place))[:MAX_EXAMPLES]
    unscored = len(margins) - len(scored)
    return Found(
        rows=rows,
        num_rows=len(scored),
        share=count / len(scored),
        summary=f"{say(num_below, 'chosen answer has', 'chosen answers have')} a lower score than the rejected one, "
        f"{say(num_ties, 'pair has', 'pairs have')} scores that hardly differ; the median margin is "
        f"{np.median(scored):.3g}" + (f"; {say(unscored, 'pair has', 'pairs have')} no scores" if unscored else ""),
        remedy=_advise(num_below, near, num_scored=len(scored), is_whole=not unscored) if count else "",
        examples=[Example(source=sides.source(*place), detail=_tell(_margin(sides, place))) for place in worst],
        values={
            "quantiles": dict(zip(map(str, QUANTILES), np.quantile(scored, QUANTILES).tolist(), strict=True)),
            "near": near,
            "below": num_below,
            "ties": num_ties,
            "unscored": unscored,
            "margins": count_margins(scored),
        },
    )


def _margin(sides: Sides, place: tuple[str, int]) -> float:
    split, row = place
    record = sides.records[split][row]
    assert isinstance(record, PreferencePair), "the check is for pairs"
    assert record.margin is not None, "only scored pairs are told"
    return record.margin


def _tell(margin: float) -> str:
    return f"chosen is scored {-margin:.3g} below rejected" if margin < 0 else f"margin {margin:.3g}"


def _advise(num_below: int, near: float, *, num_scored: int, is_whole: bool) -> str:
    if num_below > num_scored / 2:
        return "Most chosen answers have the lower score: see whether the scores, or chosen and rejected, are swapped."
    if not is_whole or not near:
        return "Look at them, and drop those whose label nobody can confirm."
    least = f"{near * 1.001:.4g}"  # above `near`, also when rounded
    return f"data.min_margin={least} leaves them out; a higher one keeps the pairs that the scores are surest of."


def count_margins(scored: Margins) -> dict[str, list[int] | list[float]]:
    """Counts pairs by their margin, for a plot; the outer bins hold the largest 1 % too, and 0 is an edge."""
    end = float(np.quantile(np.abs(scored), 0.99)) or 1.0
    start = -end if scored.min() < 0 else 0.0
    counts, edges = np.histogram(np.clip(scored, start, end), bins=NUM_BINS, range=(start, end))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


CHECK = Check(kinds=("preference",), examine=collect, conclude=conclude)
