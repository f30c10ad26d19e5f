"""Training rows whose prompt is also held out, or in a file that the user names, such as a benchmark."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, hashes, say
from prefopt.data.split import normal

Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]
Seen = tuple[Keys, Rows, Keys]


def digest(chunk: Chunk) -> Seen:
    """Returns the digests of all prompts, the row of each, and of each row a digest of what the user asks."""
    return *chunk.prompt_keys, hashes([normal(text).lower() for text in chunk.questions.each])


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found | None:
    splits = dict.fromkeys(split for split, _, _ in seen)
    others = [split for split in splits if split != "train"]
    if "train" not in splits or not others:
        return None
    keys, of_key, questions = _joined(seen, "train")
    leaked: set[int] = set()
    examples: list[Example] = []
    told = []
    for split in others:
        other_keys, other_rows, other_questions = _joined(seen, split)
        if split == "held_out":  # the rule of data.on_overlap
            place = _first_of(other_keys, other_rows)
            hits = {int(row): place[int(key)] for row, key in _shared(of_key, keys, other_keys)}
        else:  # whatever the form of its rows: the question counts, with or without a system prompt
            place = _first_of(other_questions, np.arange(len(other_questions)))
            hits = {
                int(row): place[int(key)]
                for row, key in _shared(np.arange(len(questions)), questions, other_questions)
            }
        told += [f"{len(hits):,} in {'held-out rows' if split == 'held_out' else split}"] if hits else []
        examples += [
            Example(source=sides.source("train", row), detail=f"has the prompt of {sides.source(split, other)}")
            for row, other in sorted(hits.items())[: MAX_EXAMPLES - len(examples)]
        ]
        leaked |= hits.keys()
    count = len(leaked)
    return Found(
        rows={"train": np.array(sorted(leaked), np.int64)},
        num_rows=len(questions),
        share=count / max(len(questions), 1),
        summary=f"{say(count, 'training row')} with a prompt that is measured on"
        + (f" ({', '.join(told)})" if told else ""),
        remedy="Drop them from the training data (prefopt audit --fix), or set data.on_overlap=skip.",
        examples=examples,
    )


def _joined(seen: Sequence[tuple[str, int, Seen]], split: str) -> Seen:
    parts = [found for of, _, found in seen if of == split]
    keys, rows, questions = (np.concatenate([part[number] for part in parts]) for number in range(3))
    return keys, rows, questions


def _first_of(keys: Keys, rows: Rows) -> dict[int, int]:
    """Returns the first row of each key."""
    return dict(zip(keys[::-1].tolist(), rows[::-1].tolist(), strict=True))


def _shared(rows: Rows, keys: Keys, others: Keys) -> list[tuple[int, int]]:
    """Returns the rows, each with its key, whose key is among `others`; the first key of a row comes last."""
    at = np.flatnonzero(np.isin(keys, others))[::-1]
    return list(zip(rows[at].tolist(), keys[at].tolist(), strict=True))


CHECK = Check(examine=digest, conclude=conclude, compares=True)
