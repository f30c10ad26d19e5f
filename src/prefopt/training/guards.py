"""Stops a run before a non-finite loss or gradient reaches the weights, and warns of spikes."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from prefopt.distributed.checkpoint import list_complete
from prefopt.distributed.group import gather, on_main
from prefopt.process.errors import EndedError
from prefopt.training.deferred import Deferred, Number, read

logger = logging.getLogger(__name__)

WINDOW = 50
"""Number of earlier values (gradient norms of steps, losses of log lines) that a new value is compared with."""
MIN_SEEN = 10
SPIKE = 6.0
"""A value this many standard deviations above the mean of the window is a spike."""
SHOWN_ROWS = 20


class DivergedError(EndedError):
    """The loss or the gradient is not finite; the weights of the last checkpoint, if there is one, are good."""


class Spikes:
    """Warns when a value is far above the values before it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def note(self, value: float, step: int) -> None:
        if len(self._seen) >= MIN_SEEN:
            mean = sum(self._seen) / len(self._seen)
            deviation = math.sqrt(sum((seen - mean) ** 2 for seen in self._seen) / len(self._seen))
            if value > mean + SPIKE * deviation and value > 2 * mean:
                logger.warning(
                    "step %d: %s is %.4g, far above its mean of %.4g (standard deviation %.2g)",
                    step,
                    self._name,
                    value,
                    mean,
                    deviation,
                )
        self._seen.append(value)


class StepGuard:
    """Remembers the losses of an optimizer step's forwards and which rows they came from.

    Args:
        sources: Source of each row of the training data, as `file:line`.
        checkpoints: Folder of the run's checkpoints.
    """

    def __init__(self, sources: Sequence[str], checkpoints: Path) -> None:
        self._sources, self._checkpoints = sources, checkpoints
        self._forwards: list[tuple[Number, list[int]]] = []
        self._gradients = Spikes("grad_norm")
        self._losses = Spikes("loss")

    def note_forward(self, loss: torch.Tensor, rows: list[int]) -> None:
        """Stores the loss of one forward, a scalar, and the indices of its rows."""
        self._forwards.append((Deferred.of(loss), rows))

    @property
    def rows(self) -> list[int]:
        """Rows that this rank has seen since the last `end_step`."""
        return [row for _, rows in self._forwards for row in rows]

    def has_bad_loss(self) -> bool:
        """Returns whether a loss of this rank since the last `end_step` is not finite."""
        return any(not math.isfinite(loss) for loss in self._read_with_losses())

    def check_gradient(self, norm: torch.Tensor | float, step: int) -> None:
        """Checks the gradient norm of a step (the same on all ranks) before the optimizer uses the gradient.

        Raises:
            DivergedError: The norm is not finite; raised on all ranks.
        """
        value, *_ = self._read_with_losses(Deferred.of(norm) if isinstance(norm, torch.Tensor) else float(norm))
        if not math.isfinite(value) or value < 0:  # DeepSpeed returns -1 for a norm that is not finite
            raise DivergedError(self._describe(f"step {step}: the gradient is not finite, and was not used"))
        self._gradients.note(value, step)

    def note_loss(self, loss: float, step: int) -> None:
        """Compares the loss of a log line with those before it, and warns of a spike."""
        self._losses.note(loss, step)

    def diverged(self, step: int) -> DivergedError:
        """Returns the error for a loss that is not finite on some rank. All ranks call it."""
        return DivergedError(self._describe(f"step {step}: the loss is not finite, though its gradient is"))

    def end_step(self) -> None:
        self._forwards.clear()

    def _read_with_losses(self, *others: Number) -> list[float]:
        """Returns the values of `others` and of the step's losses; only a step's first call waits for the device."""
        values = read([*others, *(loss for loss, _ in self._forwards)])
        losses = values[len(others) :]
        self._forwards = [(loss, rows) for loss, (_, rows) in zip(losses, self._forwards, strict=True)]
        return values

    def _describe(self, what: str) -> str:
        losses = self._read_with_losses()
        forwards = zip(losses, self._forwards, strict=True)
        bad = [row for loss, (_, rows) in forwards if not math.isfinite(loss) for row in rows]
        found = sorted(row for rows in gather(bad) for row in rows)
        where = "among these rows" if found else "in this step, which saw"
        rows = found or sorted(row for rows in gather(self.rows) for row in rows)
        named = ", ".join(f"{self._sources[row]}" for row in rows[:SHOWN_ROWS])
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        saved = on_main(lambda: bool(list_complete(self._checkpoints)))
        left = "the last checkpoint is good" if saved else "no checkpoint was saved before, so a run begins again"
        return (
            f"{what}; the cause is {where}: {named}{more}. Lower optim.learning_rate, or look at these rows; {left}."
        )
