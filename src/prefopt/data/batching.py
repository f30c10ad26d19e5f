"""Batches of preference pairs, epoch by epoch: they depend on lengths, seed and epoch alone."""

import heapq
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import BatchOrder
from prefopt.process.errors import UserError

WINDOW_BATCHES = 64
"""Length grouping sorts windows of about this many batches: larger windows waste less padding but mix pairs less."""

MIN_WINDOWS = 4
"""Least number of windows: in small data, one window over all pairs would form the same batches in every epoch."""


class _Plan(NamedTuple):
    """The batches of one epoch: batch i is `rows[bounds[i] : bounds[i + 1]]`.

    Attributes:
        rows: A permutation of the row indices, shape (num_pairs,).
        bounds: From 0 to num_pairs, strictly increasing, shape (num_batches + 1,).
    """

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def num_batches(self) -> int:
        return len(self.bounds) - 1


class PairBatches:
    """The batches of pairs of each epoch, over all ranks: a `batch_sampler` for a `DataLoader`.

    Every pair is in exactly one batch of an epoch. The number of batches is the same in every epoch and a multiple of
    `num_ranks`; rank r takes batches r, r + num_ranks, ... (accelerate's `BatchSamplerShard`). Equal arguments give
    equal batches on every rank and in every process, so a resumed run continues with the same order.

    `random` is a fresh permutation per epoch. `length_grouped` sorts windows of a fresh permutation by length, so that
    pairs of similar length share a batch; the batches that the ranks run at the same time cost about the same, and the
    costliest batch of the epoch comes first, so that an out-of-memory error shows at once.

    To reach the number of batches, the batches with most pairs are split. If every batch has one pair already and the
    number of ranks does not divide the number of pairs, as few as possible of the cheapest pairs share a batch
    instead: with `pairs=1`, at most num_ranks - 1 batches have two pairs.
    """

    batch_size: None = None
    """None, since batches vary in size: with a number, accelerate drops batches when one of them is smaller."""

    drop_last = False

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        order: BatchOrder,
        seed: int,
        num_ranks: int = 1,
        pairs: int | None = None,
        tokens: int | None = None,
        padded: bool,
        num_epochs: int = 1,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Computes the number of batches of an epoch.

        Args:
            lengths: Tokens of prompt, chosen and rejected of each pair, shape (num_pairs, 3).
            order: `random` or `length_grouped`; see the class.
            seed: Not negative; with the epoch, the only source of randomness.
            num_ranks: Processes that share the batches (a tensor-parallel group counts as one).
            pairs: Pairs per batch, at least 1. Exactly one of `pairs` and `tokens` is given.
            tokens: Budget of tokens per batch: a batch takes as many pairs as fit.
            padded: How a batch of n pairs is counted. True: 2 * n * max(P + max(C, R)) tokens, since each completion
                has its own copy of the prompt and all are padded to the longest. False: the sum of P + C + R.
            num_epochs: Number of epochs that can be planned when `tokens` is given.
            sources: Place of each pair, `file:line`, for errors.

        Raises:
            UserError: There are fewer pairs than ranks, or the budget is too small.
        """
        if (pairs is None) == (tokens is None):
            raise ValueError(f"give pairs or tokens, and not both; got {pairs=}, {tokens=}")
        if len(lengths) < num_ranks:
            raise UserError(
                f"data.train: {len(lengths)} pairs for {num_ranks} ranks: every rank needs at least one pair; "
                "add data or start fewer processes"
            )
        self._tokens = pair_tokens(lengths, padded=padded)
        self._order, self._seed, self._num_ranks = order, seed, num_ranks
        self._pairs, self._budget, self._padded, self._num_epochs = pairs, tokens, padded, num_epochs
        self._epoch = 0
        self._cached: tuple[int, _Plan] | None = None
        self._check_budget(sources)
        self._num_batches = self._count_batches()

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, over all ranks."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the current epoch as lists of row indices; they change only with `set_epoch`."""
        rows, bounds = self._plan(self._epoch)
        return (rows[start:stop].tolist() for start, stop in pairwise(bounds.tolist()))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0, of the next iteration.

        Call it on this object, not on a wrapper, when an epoch begins: in a resumed epoch on several ranks,
        `skip_first_batches` wraps the `BatchSamplerShard`, and neither accelerate nor the Trainer passes the epoch
        through both wrappers.
        """
        self._epoch = epoch

    def num_rows_after(self, num_batches: int) -> int:
        """Returns the number of pairs in the first `num_batches` batches of all ranks since the start of epoch 0."""
        epochs, batches = divmod(num_batches, self._num_batches)
        return epochs * len(self._tokens) + (int(self._plan(epochs).bounds[batches]) if batches else 0)

    def rows_in(self, num_batches: int) -> NDArray[np.int64]:
        """Returns the pairs in the first `num_batches` batches of all ranks since the start of epoch 0, each once."""
        num_rows = self.num_rows_after(num_batches)
        return np.arange(len(self._tokens)) if num_rows >= len(self._tokens) else self._plan(0).rows[:num_rows]

    def _plan(self, epoch: int) -> _Plan:
        if self._budget is not None and epoch >= self._num_epochs:
            raise ValueError(f"epoch {epoch} of {self._num_epochs}: the number of batches was not planned for it")
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, self._make_plan(epoch)
        return self._cached[1]

    def _make_plan(self, epoch: int) -> _Plan:
        rng = np.random.default_rng([self._seed, epoch])
        plan = self._cut(rng)
        if plan.num_batches > self._num_batches:
            plan = self._join_cheapest()
            plan = _reorder(plan, rng.permutation(plan.num_batches))
        plan = _split_largest(plan, self._num_batches)
        if self._order is BatchOrder.length_grouped:
            plan = _reorder(plan, self._group_by_cost(plan, rng))
        return plan

    def _count_batches(self) -> int:
        num_pairs, num_ranks = len(self._tokens), self._num_ranks
        if self._pairs is not None:
            num_cut = -(-num_pairs // self._pairs)
        else:
            rngs = (np.random.default_rng([self._seed, epoch]) for epoch in range(self._num_epochs))
            num_cut = max(self._cut(rng).num_batches for rng in rngs)
        num_batches = -(-num_cut // num_ranks) * num_ranks
        if num_batches > num_pairs:
            num_batches = num_pairs // num_ranks * num_ranks
            self._check_joined()
        return num_batches

    def _cut(self, rng: np.random.Generator) -> _Plan:
        """Returns the batches of an epoch before their number is adjusted to the other epochs and the ranks."""
        rows = rng.permutation(len(self._tokens))
        if self._order is BatchOrder.length_grouped:
            rows = self._sort_windows(rows)
        if self._budget is not None:
            return _Plan(rows, _cut_by_budget(self._tokens[rows], budget=self._budget, padded=self._padded))
        assert self._pairs is not None, "one of pairs and tokens is given"
        return _Plan(rows, np.append(np.arange(0, len(rows), self._pairs), len(rows)))

    def _sort_windows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorts windows by length, alternately up and down, so that a batch across two windows has similar lengths."""
        typical = self._pairs or (self._budget or 0) * len(rows) // int(self._tokens.sum())
        size = max(min(WINDOW_BATCHES * max(typical, 1), len(rows) // MIN_WINDOWS), 1)
        window = np.arange(len(rows)) // size
        tokens = self._tokens[rows]
        return rows[np.lexsort((np.where(window % 2, -tokens, tokens), window))]

    def _group_by_cost(self, plan: _Plan, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns an order of batches: the costliest first, then random, with similar costs on all ranks at a time."""
        groups = np.argsort(-self._batch_tokens(plan), kind="stable").reshape(-1, self._num_ranks)
        later = rng.permutation(rng.permuted(groups[1:], axis=1))
        return np.concatenate([groups[:1], later]).reshape(-1)

    def _batch_tokens(self, plan: _Plan) -> NDArray[np.int64]:
        tokens, starts = self._tokens[plan.rows], plan.bounds[:-1]
        if self._padded:
            return np.diff(plan.bounds) * np.maximum.reduceat(tokens, starts)
        return np.add.reduceat(tokens, starts)

    def _join_cheapest(self) -> _Plan:
        """Returns batches of one pair, but the cheapest ones are joined: the i-th cheapest with the i-th costliest."""
        rows = np.argsort(self._tokens, kind="stable")
        num_joined = len(rows) % self._num_ranks
        lower, upper = np.split(rows[: 2 * num_joined], 2)
        rows[: 2 * num_joined] = np.stack([lower, np.flip(upper)], axis=1).reshape(-1)
        return _Plan(rows, np.append(np.arange(0, 2 * num_joined, 2), np.arange(2 * num_joined, len(rows) + 1)))

    def _check_budget(self, sources: Sequence[str] | None) -> None:
        row = int(np.argmax(self._tokens))
        most = int(self._tokens[row])
        if self._budget is not None and most > self._budget:
            counted = ", its prompt twice and padded" if self._padded else ""
            where = f"pair {row}" if sources is None else sources[row]
            raise UserError(
                f"trainer.tokens_per_device: {where} has {most} tokens{counted}, more than the budget "
                f"of {self._budget} ({np.count_nonzero(self._tokens > self._budget)} such pairs); raise "
                f"trainer.tokens_per_device to at least {most} or lower data.max_length"
            )

    def _check_joined(self) -> None:
        most = int(self._batch_tokens(self._join_cheapest()).max())
        if self._budget is not None and most > self._budget:
            raise UserError(
                f"trainer.tokens_per_device: {len(self._tokens)} pairs do not divide into batches for "
                f"{self._num_ranks} ranks: nearly every pair fills the budget of {self._budget} tokens alone; raise "
                f"trainer.tokens_per_device to at least {most} or lower data.max_length"
            )


def pair_tokens(lengths: NDArray[np.int64], *, padded: bool) -> NDArray[np.int64]:
    """Returns the tokens of each pair in a batch of its own, shape (num_pairs,)."""
    prompt, chosen, rejected = lengths.astype(np.int64).T
    tokens: NDArray[np.int64] = 2 * (prompt + np.maximum(chosen, rejected)) if padded else prompt + chosen + rejected
    return tokens


def fill(tokens: NDArray[np.int64], *, budget: int, padded: bool) -> int:
    """Returns how many of the first pairs fit into one batch within a budget; `tokens` comes from `pair_tokens`."""
    return int(_cut_by_budget(tokens, budget=budget, padded=padded)[1])


def _cut_by_budget(tokens: NDArray[np.int64], *, budget: int, padded: bool) -> NDArray[np.int64]:
    """Returns the bounds of batches of consecutive pairs, each filled up to the budget; no single pair exceeds it."""
    bounds, most, total = [0], 0, 0
    for index, cost in enumerate(tokens.tolist()):
        most = max(most, cost)
        total += cost
        if (most * (index + 1 - bounds[-1]) if padded else total) > budget:
            bounds.append(index)
            most = total = cost
    return np.array([*bounds, len(tokens)])


def _split_largest(plan: _Plan, num_batches: int) -> _Plan:
    """Halves the batch with most pairs (the last of several) until there are `num_batches`."""
    num_missing = num_batches - plan.num_batches
    if not num_missing:
        return plan
    starts, sizes = plan.bounds[:-1], np.diff(plan.bounds)
    ranked = np.lexsort((-starts, -sizes))
    # Each split halves one batch, so only the largest `num_missing` batches can be affected.
    heap = [(-int(sizes[batch]), -int(starts[batch])) for batch in ranked[:num_missing]]
    new = []
    for _ in range(num_missing):
        size, start = (-value for value in heap[0])
        kept = size - size // 2
        heapq.heapreplace(heap, (-kept, -start))
        heapq.heappush(heap, (kept - size, -(start + kept)))
        new.append(start + kept)
    return _Plan(plan.rows, np.sort(np.append(plan.bounds, new)))


def _reorder(plan: _Plan, batches: NDArray[np.int64]) -> _Plan:
    """Returns the plan whose batch i is batch `batches[i]` of `plan`."""
    sizes = np.diff(plan.bounds)[batches]
    bounds = np.append(0, np.cumsum(sizes))
    shift = np.repeat(plan.bounds[batches] - bounds[:-1], sizes)
    return _Plan(plan.rows[shift + np.arange(len(plan.rows))], bounds)
