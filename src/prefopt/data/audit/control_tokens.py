"""Tokens that are not what the text says: control tokens in it, letters that no token can write, lost prompt ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, say

COUNTS = {
    "num_prompt_cut": "lose the end of their prompt, which is tokenised differently before an answer",
    "num_double_bos": "begin with two begin-of-sequence tokens",
    "num_extra_eos_skipped": "hold the end-of-sequence token inside an answer",
    "num_rendered_before": "are text with control tokens, as a chat that was rendered before",
    "num_eos_appended": "get the end-of-sequence token that the chat template leaves out",
}
"""What tokenising counts without naming the rows; the last is mended by prefopt, and no defect of the data."""
HARMLESS = "num_eos_appended"


@dataclass
class Seen:
    """What one chunk has.

    Attributes:
        rows: Row -> what is wrong with it.
        counts: Counts of `COUNTS`.
        firsts: For some of these counts, the first row.
    """

    rows: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, int] = field(default_factory=dict)


def find_tokens(chunk: Chunk) -> Seen:
    """Returns the rows with a control token, with a token for the unknown, or that cannot be tokenised; and counts."""
    assert chunk.reader is not None, "this check needs a model"
    tokens, start = chunk.tokens, chunk.start
    rows = {start + row: "holds letters that the tokenizer cannot write" for row in tokens.unknown}
    rows |= {start + row: f"holds {token}" for row, token in tokens.control.items()}
    rows |= {start + row: reason for row, reason in tokens.refused.items()}
    counts = {name: count for name in COUNTS if (count := getattr(tokens.notes, name))}
    firsts = {name: chunk.reader.find_first(chunk.records, name) for name in counts if name != HARMLESS}
    return Seen(rows, counts, {name: start + row for name, row in firsts.items() if row is not None})


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found:
    named = [(split, row, said) for split, _, found in seen for row, said in sorted(found.rows.items())]
    counts = {name: sum(found.counts.get(name, 0) for _, _, found in seen) for name in COUNTS}
    firsts = {name: (split, row) for split, _, found in reversed(seen) for name, row in found.firsts.items()}
    num_faults = sum(count for name, count in counts.items() if name != HARMLESS)
    rows = {
        split: np.array([row for of, row, _ in named if of == split], np.int64)
        for split in dict.fromkeys(split for split, _, _ in named)
    }
    examples = [Example(source=sides.source(split, row), detail=said) for split, row, said in named[:MAX_EXAMPLES]]
    examples += [Example(source=sides.source(*place), detail=COUNTS[name]) for name, place in firsts.items()]
    told = [f"{say(count, 'row')} {COUNTS[name]}" for name, count in counts.items() if count]
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=min(len(named) + num_faults, sides.num_rows) / sides.num_rows,
        summary="; ".join([f"{say(len(named), 'row')} with control tokens or letters no token can write", *told]),
        remedy="data.on_control_token=strip removes control tokens; prefopt show --row <number> shows what the model "
        "gets."
        if named or num_faults
        else "",
        examples=examples[:MAX_EXAMPLES],
        values={name: count for name, count in counts.items() if count},
    )


CHECK = Check(examine=find_tokens, conclude=conclude, needs_model=True)
