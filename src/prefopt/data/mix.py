"""Cuts and mixes the parts of a data set: how many rows of each are used, and how often each is seen in an epoch.

What is chosen follows from the rows' content and the seed alone, not from their order on disk; only without a seed
does `max_rows` take the first rows. Rows are repeated after prompts were set apart for the evaluation, so that no
prompt is on both sides and no held-out row is repeated.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from prefopt.config.mixture import Part
from prefopt.data.defects import record_key
from prefopt.data.records import Record
from prefopt.data.split import linked_prompts
from prefopt.data.table import Table

Rows = NDArray[np.int64]


@dataclass(kw_only=True)
class SliceNotes:
    """Counts of the rows of one part of a mixture."""

    weight: float = 1.0
    num_read: int = 0
    """Rows that can be used."""
    num_kept: int = 0
    """Those that `max_rows` keeps."""
    num_records: int = 0
    """Rows of the split, repeated ones included, after prompts were set apart."""


def cut(
    records: Table[Record], parts: Sequence[Part], max_rows: int | None, seed: int | None
) -> tuple[Table[Record], dict[str, SliceNotes]]:
    """Returns at most `max_rows` records, and of each part at most its own, in their order; and counts by part.

    Args:
        records: The records that can be used. Records count here, not prompts.
        parts: The parts from which they come; empty if there are none.
        max_rows: Most records of all parts together; None: no limit.
        seed: None: the first ones are kept; else those that come first in a shuffle with this seed.
    """
    rows = np.arange(len(records), dtype=np.int64)
    notes = {part.name: SliceNotes(weight=part.weight) for part in parts}
    if parts:
        names = _names_of(records, parts)
        chosen = []
        for number, part in enumerate(parts):
            own = rows[names == number]
            chosen.append(_choose(records, own, part.max_rows, seed))
            notes[part.name].num_read = len(own)
        rows = np.sort(np.concatenate(chosen))
        rows = _choose(records, rows, max_rows, seed)
        for number, part in enumerate(parts):
            notes[part.name].num_kept = int((names[rows] == number).sum())
    else:
        rows = _choose(records, rows, max_rows, seed)
    return (records if len(rows) == len(records) else records.select(rows)), notes


def weigh(records: Table[Record], parts: Sequence[Part], seed: int | None) -> Table[Record]:
    """Returns the records of an epoch: those of a part of weight 2.5 twice, and those of half its prompts once more.

    Args:
        records: The training records, each once.
        parts: The parts from which they come, with their weights.
        seed: Seed of the choice of prompts; None: 0.
    """
    if all(part.weight == 1 for part in parts):
        return records
    names = _names_of(records, parts)
    times = np.zeros(len(records), dtype=np.int64)
    for number, part in enumerate(parts):
        own = np.flatnonzero(names == number)
        times[own] = floor(part.weight)
        times[own[_is_in_share(records.select(own), part.weight % 1, f"{seed or 0} {part.name}")]] += 1
    return records.select(np.repeat(np.arange(len(records), dtype=np.int64), times))


def count_slices(records: Table[Record], notes: dict[str, SliceNotes]) -> None:
    """Writes into `notes` how many of `records` are of each part."""
    for record in records:
        notes[record.slice].num_records += 1


def _names_of(records: Table[Record], parts: Sequence[Part]) -> Rows:
    """Returns for each record the number of its part."""
    numbers = {part.name: number for number, part in enumerate(parts)}
    return np.fromiter((numbers[record.slice] for record in records), np.int64, len(records))


def _choose(records: Table[Record], rows: Rows, max_rows: int | None, seed: int | None) -> Rows:
    if max_rows is None or len(rows) <= max_rows:
        return rows
    if seed is None:
        return rows[:max_rows]
    ranks = [_rank(f"rows {seed}", record_key(record)) for record in records.select(rows)]
    chosen = sorted(range(len(rows)), key=ranks.__getitem__)[:max_rows]  # of equal rows, the first
    return np.sort(rows[chosen])


def _is_in_share(records: Table[Record], share: float, seed: str) -> NDArray[np.bool_]:
    """Returns for each record whether its prompt is among a share of the prompts."""
    keys = linked_prompts(records)
    ranked = sorted(set(keys), key=lambda key: _rank(f"weight {seed}", key))
    chosen = set(ranked[: round(share * len(ranked))])
    return np.fromiter((key in chosen for key in keys), bool, len(keys))


def _rank(seed: str, key: bytes) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + key).digest()
