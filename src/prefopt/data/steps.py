"""Batches of rows for optimizer steps: a step sees the same rows on any number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = "rows"
"""Key of a batch: for each row its index in the training data, or `NO_ROW` for a dummy row."""
NO_ROW = -1
COUNTS = "counts"
"""Key of a batch: its `TokenCounts`."""
IGNORED = -100


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens in a batch, counted on the CPU: reading a count from a GPU would make the host wait.

    Attributes:
        real: Tokens other than padding.
        scored: Tokens that the loss uses: (chosen, rejected) for pairs, (all,) for demonstrations.
    """

    real: int
    scored: tuple[int, ...]

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "TokenCounts":
        """Returns the counts of a padded batch. The first token of a row is not scored, since nothing predicts it."""
        if "labels" in batch:
            scored: tuple[torch.Tensor, ...] = (batch["labels"][:, 1:] != IGNORED,)
        else:
            scored = batch["completion_mask"][:, 1:].chunk(2)
        return cls(int(batch["attention_mask"].sum()), tuple(int(mask.sum()) for mask in scored))


class StepBatches:
    """The batches of an epoch over all ranks, in random order: a `batch_sampler` for a `DataLoader`.

    The order of an epoch is a permutation of the rows that depends on seed and epoch alone (the same as transformers
    draws on one process). Each step takes the next `batch_size * accumulation * num_ranks` rows, so only this product
    matters; rank r takes batches r, r + num_ranks, ... (accelerate's `BatchSamplerShard`). The last step of an epoch
    may have fewer rows: they are spread evenly over the least number of forwards per rank that can hold them. A rank
    without a row there gets a zero-weight dummy row, encoded as index ~i, so that all ranks run equally many forwards.
    """

    batch_size: None = None
    """None, since batches vary in size: with a number, accelerate drops batches when one of them is smaller."""

    drop_last = False

    def __init__(self, num_rows: int, *, seed: int, batch_size: int, accumulation: int, num_ranks: int) -> None:
        self._num_rows, self._seed, self._batch_size, self._num_ranks = num_rows, seed, batch_size, num_ranks
        per_step = batch_size * accumulation * num_ranks
        num_full, self._tail = divmod(num_rows, per_step)
        self._full_batches = num_full * accumulation * num_ranks
        num_rounds = -(-self._tail // (batch_size * num_ranks))
        self._tail_batches = num_rounds * num_ranks
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, over all ranks."""
        return self._full_batches + self._tail_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = self._permute(self._epoch)
        full = self._full_batches * self._batch_size
        for start in range(0, full, self._batch_size):
            yield order[start : start + self._batch_size].tolist()
        if self._tail:
            for rows in np.array_split(order[full:], self._tail_batches):
                yield rows.tolist() or [~int(order[-1])]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0, of the next iteration."""
        self._epoch = epoch

    def num_rows_after(self, num_batches: int) -> int:
        """Returns the number of rows in the first `num_batches` batches of all ranks since the start of epoch 0."""
        epochs, batches = divmod(num_batches, len(self))
        rows = min(batches, self._full_batches) * self._batch_size
        if batches > self._full_batches:
            base, more = divmod(self._tail, self._tail_batches)
            within = batches - self._full_batches
            rows += within * base + min(within, more)
        return epochs * self._num_rows + rows

    def rows_in(self, num_batches: int) -> NDArray[np.int64]:
        """Returns the rows in the first `num_batches` batches of all ranks since the start of epoch 0, each once."""
        num_rows = self.num_rows_after(num_batches)
        return np.arange(self._num_rows) if num_rows >= self._num_rows else self._permute(0)[:num_rows]

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order: NDArray[np.int64] = torch.randperm(self._num_rows, generator=generator).numpy()
        return order


class NumberedRows:
    """A data set that adds its index to each row as `ROWS`; index `~i` returns row i as a dummy row, with `NO_ROW`."""

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, object]]:
        rows = self._dataset.__getitems__([index if index >= 0 else ~index for index in indices])
        return [{**row, ROWS: max(index, NO_ROW)} for row, index in zip(rows, indices, strict=True)]


class NumberingCollator:
    """Collator that adds `ROWS` and `COUNTS` to the batch of another collator, and masks the labels of dummy rows."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [example[ROWS] for example in examples]
        batch = dict(self._collate([{k: v for k, v in example.items() if k != ROWS} for example in examples]))
        if "labels" in batch:
            is_filling = torch.tensor(rows) == NO_ROW
            batch["labels"] = batch["labels"].masked_fill(is_filling[:, None], IGNORED)
        return {**batch, ROWS: rows, COUNTS: TokenCounts.of(batch)}
