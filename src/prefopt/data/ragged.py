"""Ragged arrays, rows of unequal length in two flat arrays: token ids of a data set, log-probs of its completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Array = NDArray[Any]

CONTEXT_COLUMNS = ("chosen_context", "rejected_context")
"""Columns of a pair data set with the ranges of completion tokens that are not trained: [start, end, start, ...]."""


@dataclass(frozen=True)
class Ragged:
    """A ragged array: row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        values: All rows, concatenated.
        offsets: Start of each row, and end of the last one; shape (rows + 1,).
    """

    values: Array
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Array], dtype: DTypeLike) -> "Ragged":
        """Returns the ragged array of some rows, each of shape (length,)."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        values = np.concatenate(rows).astype(dtype, copy=False) if len(rows) else np.empty(0, dtype)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def without(self, ranges: "Ragged") -> "Ragged":
        """Returns the rows without the items in `ranges`: per row, half-open, as [start, end, start, end, ...]."""
        is_kept = np.ones(len(self.values), dtype=bool)
        for row in np.flatnonzero(ranges.lengths).tolist():
            for start, end in self.offsets[row] + ranges[row].reshape(-1, 2):
                is_kept[start:end] = False
        num_kept = np.concatenate([[0], np.cumsum(is_kept, dtype=np.int64)])
        return Ragged(self.values[is_kept], num_kept[self.offsets])

    def part(self, start: int, end: int) -> "Ragged":
        """Returns the rows from `start` to `end`, without a copy of their values."""
        offsets = self.offsets[start : end + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def sums(self) -> NDArray[np.float64]:
        """Returns the sum of each row in float64, shape (rows,); 0 for an empty row."""
        sums = np.zeros(len(self))
        filled = self.lengths > 0
        if filled.any():
            sums[filled] = np.add.reduceat(self.values, self.offsets[:-1][filled], dtype=np.float64)
        return sums


@dataclass(frozen=True)
class Scattered:
    """A ragged array whose rows lie in several arrays, such as memory-mapped files: row i begins at `start[i]`.

    Attributes:
        arrays: The arrays in which rows lie.
        array: Number of each row's array, shape (rows,); negative for a row that cannot be read.
        start: Place of each row's first item in its array, shape (rows,).
        lengths: Number of items of each row, shape (rows,).
    """

    arrays: list[Array]
    array: NDArray[np.int32]
    start: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Array:
        assert self.has(row), f"row {row} was not asked for when these rows were looked up"
        start = self.start[row]
        values: Array = self.arrays[self.array[row]][start : start + self.lengths[row]]
        return values

    def has(self, row: int) -> bool:
        """Returns whether a row can be read."""
        return bool(self.array[row] >= 0)

    def read(self, start: int, end: int) -> Ragged:
        """Returns a copy of the rows from `start` to `end`."""
        return Ragged.of([self[row] for row in range(start, end)], np.float32)


@dataclass(frozen=True)
class PairTable:
    """Token ids (int32) of preference pairs.

    Attributes:
        contexts: Ranges of tokens that are not trained, for chosen and for rejected; None if all are trained.
    """

    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    contexts: tuple[Ragged, Ragged] | None = None

    @classmethod
    def of(cls, dataset: "Dataset") -> "PairTable":
        """Returns the table of a `datasets.Dataset` with the columns prompt_ids, chosen_ids and rejected_ids."""
        table = dataset.with_format("arrow")[:]
        prompt, chosen, rejected = (_read(table.column(f"{name}_ids")) for name in ("prompt", "chosen", "rejected"))
        has_contexts = set(CONTEXT_COLUMNS) <= set(table.column_names)
        contexts = [_read(table.column(name)) for name in CONTEXT_COLUMNS] if has_contexts else None
        return cls(prompt, chosen, rejected, None if contexts is None else (contexts[0], contexts[1]))

    def __len__(self) -> int:
        return len(self.prompt)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of prompt, chosen and rejected, shape (pairs, 3)."""
        return np.stack([self.prompt.lengths, self.chosen.lengths, self.rejected.lengths], axis=1)

    def part(self, start: int, end: int) -> "PairTable":
        """Returns the pairs from `start` to `end`, without a copy of their tokens."""
        prompt, chosen, rejected = (side.part(start, end) for side in (self.prompt, self.chosen, self.rejected))
        contexts = self.contexts and (self.contexts[0].part(start, end), self.contexts[1].part(start, end))
        return PairTable(prompt, chosen, rejected, contexts)

    def trained(self, logps: "PairLogps") -> "PairLogps":
        """Returns `logps` without the tokens that are not trained."""
        if self.contexts is None:
            return logps
        chosen, rejected = self.contexts
        return PairLogps(logps.chosen.without(chosen), logps.rejected.without(rejected))

    def examples(self, rows: Iterable[int]) -> list[dict[str, Array]]:
        """Returns rows as input for a collator, without context columns: all tokens of a completion are scored."""
        parts = {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}
        return [{name: part[row] for name, part in parts.items()} for row in rows]


@dataclass(frozen=True)
class PairLogps:
    """Log-prob of each completion token of preference pairs, float32."""

    chosen: Ragged
    rejected: Ragged


def _read(column: "pa.ChunkedArray") -> Ragged:
    array = column.combine_chunks()
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    values = array.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
