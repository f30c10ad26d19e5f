"""Where the log-probs of pairs lie in memory-mapped shards: flat arrays, with no object per pair."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.ragged import Array, PairLogps, PairTable, Scattered
from prefopt.models.shards import KEY_BYTES, Keys, MappedShard, Rows, keys_of
from prefopt.models.shared_prefix.collate import REFERENCE_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

NOWHERE = -1
"""Number of the shard of a record that no shard holds, and place of a key that is not looked for."""


class Lookup:
    """Finds the records of some rows of a table in the shards that it is shown.

    Equal completions of equal prompts have one key, and so one record. Keys are held as two sorted columns of 8-byte
    numbers, so that a shard's keys are found by bisection.
    """

    def __init__(self, table: PairTable, rows: Rows) -> None:
        """Computes the keys of the completions of `rows`; no others are found."""
        self._table = table
        high, low = keys_of(table, rows).view(np.uint64).reshape(-1, 2).T
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        is_first = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(order)]
        numbers = np.empty(len(order), np.int32)
        numbers[order] = np.cumsum(is_first) - 1
        self._record = np.full((len(table), 2), NOWHERE, np.int32)
        self._record[rows] = numbers.reshape(-1, 2)
        self._high, self._low = high[is_first], low[is_first]
        self._most_alike = int(np.unique(self._high, return_counts=True)[1].max(initial=1))
        self._values: list[Array] = []
        self._seconds_per_token: list[float] = []
        self._shard = np.full(len(self._high), NOWHERE, np.int32)
        self._start = np.zeros(len(self._high), np.int64)
        self._length = np.zeros(len(self._high), np.int32)

    def keys(self, rows: Rows) -> Keys:
        """Returns the keys of the chosen and rejected completions of `rows`."""
        records = self._record[rows]
        parts = np.stack([self._high[records], self._low[records]], axis=-1)
        return parts.view(np.uint8).reshape(len(rows), 2, KEY_BYTES)

    def add(self, shard: MappedShard) -> None:
        """Notes which records lie in a shard; a record that lies in an earlier one too is taken from this one."""
        places = self._find(*shard.keys.reshape(-1).view(np.uint64).reshape(-1, 2).T)
        is_found = places != NOWHERE
        if not is_found.any():
            return
        starts = np.cumsum(shard.lengths, dtype=np.int64) - shard.lengths
        records = places[is_found]
        self._shard[records] = len(self._values)
        self._start[records], self._length[records] = starts[is_found], shard.lengths[is_found]
        self._values.append(shard.logps)
        self._seconds_per_token.append(shard.seconds / max(1, len(shard.logps)))

    def is_missing(self, rows: Rows) -> NDArray[np.bool_]:
        """Returns for each of `rows` whether a record of it has not been found."""
        found: NDArray[np.bool_] = (self._shard[self._record[rows]] == NOWHERE).any(axis=1)
        return found

    def seconds(self, rows: Rows) -> float:
        """Returns how long computing those of these rows took that have been found."""
        records = self._record[rows[~self.is_missing(rows)]]
        if not len(records):
            return 0.0
        per_token = np.array(self._seconds_per_token)[self._shard[records]]
        return float((per_token * self._length[records]).sum())

    def logps(self, rows: Rows) -> "StoredLogps":
        """Returns the log-probs of the table's pairs, of which those of `rows` can be read."""
        shard = np.full((2, len(self._table)), NOWHERE, np.int32)
        start = np.zeros((2, len(self._table)), np.int64)
        lengths = self._table.lengths[:, 1:].T.astype(np.int32)
        records = self._record[rows].T
        shard[:, rows], start[:, rows] = self._shard[records], self._start[records]
        assert (self._length[records] == lengths[:, rows]).all(), "a record has another length than its completion"
        return StoredLogps(*(Scattered(self._values, shard[side], start[side], lengths[side]) for side in (0, 1)))

    def _find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns the number of each key among those that are looked for; NOWHERE for a key that is not."""
        found = np.full(len(high), NOWHERE)
        if not len(self._high):
            return found
        first = np.searchsorted(self._high, high)
        for more in range(self._most_alike):  # keys whose first 8 bytes are alike lie beside each other
            place = np.minimum(first + more, len(self._high) - 1)
            is_it = (self._high[place] == high) & (self._low[place] == low)
            found[is_it] = place[is_it]
        return found


@dataclass(frozen=True)
class StoredLogps:
    """Log-prob of each completion token of preference pairs, float32, in memory-mapped shards."""

    chosen: Scattered
    rejected: Scattered

    def read(self, start: int, end: int) -> PairLogps:
        """Returns a copy in memory of the log-probs of the pairs from `start` to `end`."""
        return PairLogps(self.chosen.read(start, end), self.rejected.read(start, end))


@dataclass(frozen=True)
class PairsWithReference:
    """Tokenised pairs; a row that is taken has `REFERENCE_COLUMNS` too, read from the shards at that moment.

    Loaders read a few batches ahead of the last step. A pair whose log-probs were not asked for has NaN there.
    """

    pairs: "Dataset"
    logps: StoredLogps

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | str) -> Any:
        return self.pairs[key] if isinstance(key, str) else {**self.pairs[key], **self._reference_of(key)}

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        found = zip(self.pairs.__getitems__(rows), rows, strict=True)
        return [{**pair, **self._reference_of(row)} for pair, row in found]

    @property
    def column_names(self) -> list[str]:
        """Columns of the tokens, without those of the reference."""
        names: list[str] = self.pairs.column_names
        return names

    def with_format(self, kind: str) -> "Dataset":
        """Returns the tokens alone, in a format of `datasets`."""
        return self.pairs.with_format(kind)

    def has_reference(self, row: int) -> bool:
        """Returns whether the log-probs of a pair were asked for."""
        return self.logps.chosen.has(row)

    def _reference_of(self, row: int) -> dict[str, Array]:
        sides = zip(REFERENCE_COLUMNS, (self.logps.chosen, self.logps.rejected), strict=True)
        if not self.has_reference(row):
            return {column: np.full(side.lengths[row], np.nan, np.float32) for column, side in sides}
        return {column: side[row] for column, side in sides}
