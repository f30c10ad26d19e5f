"""Pairs whose label contradicts what the words of all other pairs say: chosen and rejected may be swapped there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.bag_of_words import TOO_FEW, Bags, Judged, examine, interval, judge
from prefopt.data.audit.check import MAX_EXAMPLES, Check, Example, Found, Sides, by_split, say

SKILLED = 0.6
"""Lower bound of the classifier's accuracy, from which on its doubts say something about labels."""
SUREST = 0.25
"""Share of the pairs, those of which it is surest, whose contradictions estimate the share of wrong labels."""
SUSPECTED = 0.5
"""Share of the pairs, those of which it is surest, among which contradicting ones are suspicious."""
MAX_RANKED = 1_000
"""Pairs that `values` ranks."""
NUM_BINS = 40
"""Bins of the histogram of log-odds; an even number, so that none straddles 0."""


def conclude(seen: Sequence[tuple[str, int, Bags]], sides: Sides) -> Found | str:
    """Returns the suspicious pairs, and, where the classifier has skill, the share of wrong labels.

    The gate compares the lower bound of that share. It is counted among the pairs of which the classifier is surest:
    there a classifier that is merely weak is seldom wrong, and wrong labels are as frequent as anywhere.
    """
    judged = judge(seen)
    if judged is None:
        return TOO_FEW
    places = [(split, start + row) for split, start, bags in seen for row in bags.rows.tolist()]
    order = np.argsort(judged.scores, kind="stable")
    ranked = [
        {"source": sides.source(*places[index]), "log_odds": round(float(judged.scores[index]), 3)}
        for index in order[: min(MAX_RANKED, int((judged.scores < 0).sum()))].tolist()
    ]
    values = {"accuracy": judged.accuracy, "ci95": list(judged.interval), "suspicious": ranked}
    if judged.interval[0] < SKILLED:
        return Found(
            rows={},
            num_rows=len(places),
            share=0.0,
            summary="a bag of words sees too little here to doubt labels: "
            f"accuracy {judged.accuracy:.2f}{judged.sampled}",
            values=values,
        )
    share, (low, high) = _estimate(judged)
    suspicious = np.flatnonzero((judged.scores < 0) & _surest(judged, SUSPECTED))
    rows = [(places[index][0], np.array([places[index][1]])) for index in suspicious.tolist()]
    return Found(
        rows=by_split(rows),
        num_rows=len(places),
        share=share,
        gauge=low,
        summary=f"about {share:.1%} of labels look swapped (95 % CI {low:.1%} to {high:.1%}, by a bag of words of "
        f"accuracy {judged.accuracy:.2f}{judged.sampled}); {say(len(suspicious), 'pair is', 'pairs are')} suspicious",
        remedy="Look at the pairs under 'suspicious' of audit.json, the worst first; "
        "algorithm.label_smoothing=<share> expects that share of wrong labels."
        if len(suspicious)
        else "",
        examples=_show(judged, order[:MAX_EXAMPLES].tolist(), places, sides) if len(suspicious) else (),
        values={
            **values,
            "estimate": {"value": share, "ci95": [low, high]},
            "log_odds": count_log_odds(judged.scores),
        },
    )


def count_log_odds(scores: NDArray[np.float64]) -> dict[str, list[int] | list[float]]:
    """Counts pairs by their log-odds, for a plot with 0 in its middle; the outer bins hold the surest 1 % too."""
    end = float(np.quantile(np.abs(scores), 0.99)) or 1.0
    counts, edges = np.histogram(np.clip(scores, -end, end), bins=NUM_BINS, range=(-end, end))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _surest(judged: Judged, share: float) -> NDArray[np.bool_]:
    certainty = np.abs(judged.scores)
    limit = float(np.quantile(certainty, 1 - share))
    return np.asarray(certainty >= limit)


def _estimate(judged: Judged) -> tuple[float, tuple[float, float]]:
    surest = _surest(judged, SUREST)
    wrong = (judged.scores[surest] < 0).astype(np.float64)
    weights = judged.weights[surest]
    return float(np.average(wrong, weights=weights)), interval(wrong, weights, judged.prompts[surest])


def _show(judged: Judged, worst: Sequence[int], places: Sequence[tuple[str, int]], sides: Sides) -> list[Example]:
    return [
        Example(
            source=sides.source(*places[index]),
            detail=f"by its words {np.exp(-judged.scores[index]):.1f} times as likely rejected",
            text=sides.show_answer(*places[index]),
        )
        for index in worst
        if judged.scores[index] < 0
    ]


CHECK = Check(kinds=("preference",), examine=examine, conclude=conclude, needs="sklearn", is_slow=True)
