"""Training metrics between two log lines: exact means over examples and tokens, for any number of ranks."""

import math
from typing import TYPE_CHECKING, Any

import torch

from prefopt.distributed.group import gather
from prefopt.training.deferred import Number, read

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_UNREAD = 4096
"""Most numbers that stay unread on the device: those of some hundred forwards, a few MB."""


class MetricsWindow:
    """Sums and counts of this rank's metrics since the last log line, and its tokens since the run began.

    A checkpoint holds the window of every rank, so that log lines after a resume equal those of an uninterrupted run.
    Numbers that are still on a device are read when the window is read or saved.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._tokens = 0
        self._unread: list[tuple[str, Number, float]] = []

    def add(self, name: str, total: Number, count: float) -> None:
        """Adds a metric's sum `total` over `count` examples or tokens."""
        if count:
            self._unread.append((name, total, count))
        if len(self._unread) >= MOST_UNREAD:
            self._settle()

    def add_tokens(self, number: int) -> None:
        self._tokens += number

    def close(self) -> dict[str, float]:
        """Returns means over all ranks since the last call, and `num_tokens` of the run. All ranks call it."""
        windows = gather(self.state())
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for window in windows:
            for name, total in window["sums"].items():
                sums[name] = sums.get(name, 0.0) + float(total)
                counts[name] = counts.get(name, 0.0) + window["counts"][name]
        self._sums, self._counts = {}, {}
        tokens = sum(window["tokens"] for window in windows)
        return {**{name: total / counts[name] for name, total in sums.items()}, "num_tokens": tokens}

    def count_tokens(self) -> int:
        """Counts the tokens of all ranks since the run began. All ranks call it."""
        return int(sum(gather(self._tokens)))

    def state(self) -> dict[str, Any]:
        """Returns the window as JSON values; sums that are not finite are strings, since JSON has no such numbers."""
        self._settle()
        sums = {name: total if math.isfinite(total) else str(total) for name, total in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts), "tokens": self._tokens}

    def load(self, states: list[dict[str, Any]], *, rank: int, num_ranks: int) -> None:
        """Loads the windows of a checkpoint: this rank's own, and its share of those of ranks that no longer exist."""
        self._sums, self._counts, self._tokens, self._unread = {}, {}, 0, []
        for state in states[rank::num_ranks]:
            for name, total in state["sums"].items():
                self._add_up(name, float(total), state["counts"][name])
            self._tokens += state["tokens"]

    def _settle(self) -> None:
        """Reads the unread numbers, in the order in which they were added."""
        totals = read(total for _, total, _ in self._unread)
        for (name, _, count), total in zip(self._unread, totals, strict=True):
            self._add_up(name, total, count)
        self._unread.clear()

    def _add_up(self, name: str, total: float, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count


class OnThisRank:
    """An accelerator that gathers nothing, so that metrics computed with it are those of this rank alone."""

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    gather_for_metrics = gather
