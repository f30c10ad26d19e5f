"""Rows that are cut at `data.max_length`, under the model's own tokenizer and chat template."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import Check, Chunk, Found, Sides, by_split, say

QUANTILES = (0.5, 0.9, 0.99, 1.0)
NUM_BINS = 40
"""Bins of the histogram of lengths."""
Lengths = NDArray[np.int32]
Seen = tuple[Lengths, Lengths, int]


def measure(chunk: Chunk) -> Seen:
    """Returns the tokens of each prompt, those of each prompt with its longer completion, and the limit."""
    assert chunk.reader is not None, "this check needs a model"
    return chunk.tokens.prompt, chunk.tokens.longest, chunk.reader.max_length


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found | None:
    limit = seen[0][2][2]
    longest = np.concatenate([found for _, _, (_, found, _) in seen])
    prompts = np.concatenate([found for _, _, (found, _, _) in seen])
    tokens = longest[longest >= 0]
    if not len(tokens):
        return None
    rows = by_split([(split, start + np.flatnonzero(found > limit)) for split, start, (_, found, _) in seen])
    count, num_filled = int((tokens > limit).sum()), int((prompts >= limit).sum())
    quantiles = np.quantile(tokens, QUANTILES, method="higher").tolist()
    fits = 2 ** int(np.ceil(np.log2(max(quantiles[-1], 2))))
    filled = f", in {num_filled:,} of them the prompt alone fills it" if num_filled else ""
    return Found(
        rows=rows,
        num_rows=len(tokens),
        share=count / len(tokens),
        summary=f"{say(count, 'row is', 'rows are')} longer than data.max_length={limit}{filled}; the longest has "
        f"{quantiles[-1]:,} tokens, half have {quantiles[0]:,} or less",
        remedy=f"data.max_length={fits} holds all; a cut answer loses its end and never learns to stop "
        "(data.on_long_completion=skip leaves such rows out)."
        if count
        else "",
        examples=sides.examples(rows),
        values={
            "max_length": limit,
            "tokens": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
            "histogram": count_lengths(tokens, limit),
        },
    )


def count_lengths(tokens: Lengths, limit: int) -> dict[str, list[int] | list[float]]:
    """Counts rows by their tokens, for a plot with the limit on it if it is near; the last bin holds all beyond."""
    end = max(min(int(tokens.max()), max(2 * limit, int(np.quantile(tokens, 0.99)))), 1)
    end = limit if end < limit <= 2 * end else end
    counts, edges = np.histogram(np.minimum(tokens, end), bins=min(NUM_BINS, end), range=(0, end))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


CHECK = Check(examine=measure, conclude=conclude, needs_model=True)
