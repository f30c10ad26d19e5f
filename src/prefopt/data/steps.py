"""How rows become the batches of optimizer steps, so that a step sees the same rows on any number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROWS = "rows"
"""In a batch: a list of the index of each row in the training data, -1 for filling."""
NO_ROW = -1
COUNTS = "counts"
"""In a batch: its `TokenCounts`."""
IGNORED = -100


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a batch, counted before it is moved: to read a count from a GPU, the host would wait for it.

    Attributes:
        real: All but padding.
        scored: Those that the loss looks at: of chosen and of rejected for pairs, of all for demonstrations.
    """

    real: int
    scored: tuple[int, ...]

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "TokenCounts":
        """Counts the tokens of a padded batch. The first token of a row is never scored, since nothing predicts it."""
        if "labels" in batch:
            scored: tuple[torch.Tensor, ...] = (batch["labels"][:, 1:] != IGNORED,)
        else:
            scored = batch["completion_mask"][:, 1:].chunk(2)
        return cls(int(batch["attention_mask"].sum()), tuple(int(mask.sum()) for mask in scored))


class StepBatches:
    """The batches of an epoch over all ranks, in random order: a `batch_sampler` for a `DataLoader`.

    An epoch is a permutation of the rows, decided by seed and epoch alone (the one that transformers draws on one
    process). Step k takes its next `batch_size * accumulation * num_ranks` rows, whatever the three factors are; rank
    r takes batches r, r + num_ranks, ... (accelerate's `BatchSamplerShard`). The last step of an epoch may have fewer
    rows: they are spread evenly over as few rounds of forwards as hold them. A rank for which no row is left there
    gets one as filling (its bitwise complement as index), as all ranks must take part in a forward; it has no weight.
    """

    batch_size: None = None
    """Batches vary in size. With a number here, accelerate drops the batches of ranks beside a smaller one."""

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
        """The number of batches of an epoch, over all ranks."""
        return self._full_batches + self._tail_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = self._permute()
        full = self._full_batches * self._batch_size
        for start in range(0, full, self._batch_size):
            yield order[start : start + self._batch_size].tolist()
        if self._tail:
            for rows in np.array_split(order[full:], self._tail_batches):
                yield rows.tolist() or [~int(order[-1])]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch (from 0) that the next iteration yields."""
        self._epoch = epoch

    def num_rows_after(self, num_batches: int) -> int:
        """The rows in the first `num_batches` batches over all ranks, counted from epoch 0 over epochs."""
        epochs, batches = divmod(num_batches, len(self))
        rows = min(batches, self._full_batches) * self._batch_size
        if batches > self._full_batches:
            base, more = divmod(self._tail, self._tail_batches)
            within = batches - self._full_batches
            rows += within * base + min(within, more)
        return epochs * self._num_rows + rows

    def _permute(self) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order: NDArray[np.int64] = torch.randperm(self._num_rows, generator=generator).numpy()
        return order


class NumberedRows:
    """A data set whose rows know their index; an index of `~i` gives row i as filling."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = self._dataset.__getitems__([index if index >= 0 else ~index for index in indices])
        return [{**row, ROWS: max(index, NO_ROW)} for row, index in zip(rows, indices, strict=True)]


class NumberingCollator:
    """Adds to a collator's batch which rows and how many tokens it holds, and takes the labels of filling away."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [example[ROWS] for example in examples]
        batch = dict(self._collate([{k: v for k, v in example.items() if k != ROWS} for example in examples]))
        if "labels" in batch:
            is_filling = torch.tensor(rows) == NO_ROW
            batch["labels"] = batch["labels"].masked_fill(is_filling[:, None], IGNORED)
        return {**batch, ROWS: rows, COUNTS: TokenCounts.of(batch)}
