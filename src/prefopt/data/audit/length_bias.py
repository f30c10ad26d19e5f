"""How far the length of the answers alone tells which one is chosen: DPO learns that before anything else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, Found, Sides, by_split, say
from prefopt.data.intervals import wilson

MATCHED = 0.1
"""Two lengths match if the longer one exceeds the shorter by at most this share."""
SKEWED = 0.55
"""From this share on, the summary says which answers are preferred."""
Lengths = NDArray[np.int32]


def measure(chunk: Chunk) -> Lengths:
    """Returns the number of characters of both sides, shape (rows, 2)."""
    return np.stack([chunk.chosen.lengths, chunk.rejected.lengths], axis=1).astype(np.int32)


def conclude(seen: Sequence[tuple[str, int, Lengths]], sides: Sides) -> Found:
    lengths = np.concatenate([found for _, _, found in seen]).astype(np.int64)
    chosen, rejected = lengths[:, 0], lengths[:, 1]
    num_longer, num_shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
    num_rows, num_told = len(lengths), num_longer + num_shorter
    is_matched = (np.abs(chosen - rejected) <= MATCHED * np.minimum(chosen, rejected)) & (chosen != rejected)
    ratios = np.log2((chosen + 1) / (rejected + 1))
    counts, edges = np.histogram(np.clip(ratios, -4, 4), bins=32, range=(-4, 4))
    accuracy = num_longer / num_told if num_told else 0.5
    interval = wilson(num_longer, num_told)
    better = max(accuracy, 1 - accuracy)
    is_real = interval[0] > 0.5 or interval[1] < 0.5
    skew = "longer" if accuracy > 0.5 else "shorter"
    rows = [(split, start + np.flatnonzero(found[:, 0] > found[:, 1])) for split, start, found in seen]
    is_told = is_real and better >= SKEWED
    return Found(
        rows=by_split(rows),
        num_rows=num_rows,
        share=num_longer / num_rows,
        gauge=better if is_real else 0.5,
        summary=_summarise(accuracy, interval, num_told, num_rows - num_told, of=skew if is_told else "longer"),
        remedy=""
        if not is_told
        else "Compare the report's accuracy with that of the length alone; add pairs in which "
        f"the {'shorter' if skew == 'longer' else 'longer'} answer is better, or use "
        "algorithm.loss_type=sigmoid_norm, which divides by length.",
        values={
            "longer_is_chosen": {"value": accuracy, "ci95": list(interval), "n": num_told},
            "matched": _matched(chosen[is_matched] > rejected[is_matched]),
            "rank_correlation": _rank_correlation(chosen, rejected),
            "median_characters": {"chosen": float(np.median(chosen)), "rejected": float(np.median(rejected))},
            "log2_ratio": {"counts": counts.tolist(), "edges": edges.tolist()},
        },
    )


def _summarise(accuracy: float, interval: tuple[float, float], num_told: int, num_same: int, *, of: str) -> str:
    if not num_told:
        return "both answers are equally long in all pairs"
    shares = [accuracy, *interval] if of == "longer" else [1 - accuracy, 1 - interval[1], 1 - interval[0]]
    same = f"; in {say(num_same, 'more pair')} both are equally long" if num_same else ""
    return (
        f"the {of} answer is the chosen one in {shares[0]:.1%} of {say(num_told, 'pair')} "
        f"(95 % CI {shares[1]:.1%} to {shares[2]:.1%}){same}"
    )


def _matched(is_longer: NDArray[np.bool_]) -> dict[str, object]:
    n, wins = len(is_longer), int(is_longer.sum())
    return {"value": wins / n if n else None, "ci95": list(wilson(wins, n)), "n": n}


def _rank_correlation(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> float:
    """Returns Spearman's correlation, over all answers, of their length and whether they are chosen."""
    both = np.concatenate([chosen, rejected])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    labels = np.repeat([1.0, 0.0], len(chosen))
    spread = ranks.std() * labels.std()
    return float(((ranks - ranks.mean()) * (labels - labels.mean())).mean() / spread) if spread else 0.0


CHECK = Check(kinds=("preference",), examine=measure, conclude=conclude, is_of_whole=True)
