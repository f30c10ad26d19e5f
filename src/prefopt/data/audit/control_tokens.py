"""Tokens that are not what the text says: control tokens in it, letters that no token can write, lost prompt ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, by_split, say

COUNTS = {
    "num_prompt_cut": "lose the end of their prompt, which is tokenised differently before an answer",
    "num_double_bos": "begin with two begin-of-sequence tokens",
    "num_extra_eos_skipped": "hold the end-of-sequence token inside an answer",
    "num_rendered_before": "are text with control tokens, as a chat that was rendered before",
    "num_eos_appended": "get the end-of-sequence token that the chat template leaves out",
}
"""What tokenising counts, and says of these rows; the last is mended by prefopt, and no defect of the data."""
HARMLESS = "num_eos_appended"


@dataclass
class Seen:
    """What one chunk has.

    Attributes:
        rows: Row -> what its text holds.
        faults: Name of `COUNTS` -> rows that it counts.
        num_mended: How many rows `HARMLESS` counts.
    """

    rows: dict[int, str]
    faults: dict[str, list[int]]
    num_mended: int


def find_tokens(chunk: Chunk) -> Seen:
    """Returns the rows with a control token, with a token for the unknown, or that cannot be tokenised; and counts."""
    assert chunk.reader is not None, "this check needs a model"
    tokens, start = chunk.tokens, chunk.start
    rows = {start + row: "holds letters that the tokenizer cannot write" for row in tokens.unknown}
    rows |= {start + row: f"holds {token}" for row, token in tokens.control.items()}
    rows |= {start + row: reason for row, reason in tokens.refused.items()}
    counted = [name for name in COUNTS if name != HARMLESS and getattr(tokens.notes, name)]
    faults = {name: [start + row for row in chunk.reader.find_rows(chunk.records, name)] for name in counted}
    return Seen(rows, faults, getattr(tokens.notes, HARMLESS))


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found:
    said: dict[tuple[str, int], str] = {}
    counts = dict.fromkeys(COUNTS, 0)
    for split, _, found in seen:
        counts[HARMLESS] += found.num_mended
        said |= {(split, row): what for row, what in sorted(found.rows.items())}
    num_named = len(said)
    for split, _, found in seen:
        for name, rows in found.faults.items():
            counts[name] += len(rows)
            for row in rows:
                said.setdefault((split, row), COUNTS[name])
    told = [f"{say(count, 'row')} {COUNTS[name]}" for name, count in counts.items() if count]
    return Found(
        rows=by_split([(split, np.array([row])) for split, row in sorted(said)]),
        num_rows=sides.num_rows,
        share=len(said) / sides.num_rows,
        summary="; ".join([f"{say(num_named, 'row')} with control tokens or letters no token can write", *told]),
        remedy="data.on_control_token=strip removes control tokens; prefopt show --row <number> shows what the model "
        "gets."
        if said
        else "",
        examples=[Example(source=sides.source(*place), detail=what) for place, what in _vary(said)],
        values={name: count for name, count in counts.items() if count},
    )


def _vary(said: dict[tuple[str, int], str]) -> list[tuple[tuple[str, int], str]]:
    """Returns as many rows as a finding names: first one of each fault, so that a frequent one hides no other."""
    firsts = {what: place for place, what in reversed(said.items()) if what in COUNTS.values()}
    shown = {place: what for what, place in reversed(firsts.items())}
    return [*{**shown, **said}.items()][:MAX_EXAMPLES]


CHECK = Check(examine=find_tokens, conclude=conclude, needs_model=True)
