"""Whether all variants compute the same step: nothing is timed before they do.

In float32 every variant is compared with TRL's own step, and may differ from it by the rounding of sums. In half
precision rounding itself moves the gradient of a 1B model by several percent, so no fixed limit tells a right step
from a wrong one. There the same weights and pairs are computed in float32 by plain TRL, and a variant's error against
that may be at most `FACTOR` times TRL's own.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks.shapes import Batches, Row
from benchmarks.variants import BASELINE, PRECOMPUTE, SIDES, Contest

FACTOR = 1.5
"""A variant's error against float32, over TRL's own error, above which nothing is timed."""
LIMIT = 1e-5
"""In float32: relative difference of loss and of gradient from TRL's, above which nothing is timed."""
ALIKE = 1e-3
"""A loss this close to ln 2 means that policy and reference are equal, and a wrong reference would not be seen."""


class DisagreementError(SystemExit):
    """A variant does not compute what TRL computes."""


@dataclass(slots=True)
class Agreement:
    """What separates each variant's step from the one that is expected, at its largest over the batches.

    Attributes:
        compared_with: The expected step: `trl`, or in half precision `float32`.
        loss: |loss - expected| / expected, by variant.
        gradient: Norm of the difference over the norm of the expected gradient, by variant.
        loss_limit: Above this nothing is timed.
        gradient_limit: The same for the gradient.
        mean_loss: TRL's loss, mean over the batches.
    """

    compared_with: str
    loss: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=dict)
    loss_limit: float = LIMIT
    gradient_limit: float = LIMIT
    mean_loss: float = 0.0

    def note(self, name: str, loss: float, gradient: float) -> None:
        """Keeps the larger of these and earlier errors; what is not a number is larger than any."""
        for kept, found in ((self.loss, loss), (self.gradient, gradient)):
            old = kept.get(name, 0.0)
            kept[name] = old if found <= old else found

    def require(self) -> None:
        """Raises a `DisagreementError` if a variant is above a limit."""
        for name in self.loss:
            loss, gradient = self.loss[name], self.gradient[name]
            if not (loss <= self.loss_limit and gradient <= self.gradient_limit):
                raise DisagreementError(
                    f"{name} differs from {self.compared_with}: loss by {loss:.1e} (relative, at most "
                    f"{self.loss_limit:.1e}), gradient by {gradient:.1e} (at most {self.gradient_limit:.1e}). "
                    "Nothing is timed."
                )


def check(contest: Contest, batches: Batches, collated: dict[str, list[dict[str, Any]]]) -> Agreement:
    """Computes every batch by every variant, and by what they are compared with.

    Args:
        contest: The variants.
        batches: Rows without reference log-probs.
        collated: The batches of each variant, with theirs.

    Raises:
        DisagreementError: A variant's error is above the limit, or the loss is ln 2.
    """
    is_exact = contest.dtype is torch.float32
    agreement = Agreement(BASELINE if is_exact else "float32")
    expected, losses, spread = None, [], 0.0
    for index, rows in enumerate(batches):
        if not is_exact:
            expected = compute_in_float32(contest, rows)
            spread = max(spread, measure_spread(contest, rows, expected))
        for name, variant in contest.variants.items():
            contest.policy.zero_grad()
            with variant.active():
                loss = variant.differentiate(collated[name][index]).item()
            if name == BASELINE:
                losses.append(loss)
                expected = expected or Step([loss], [p.grad.cpu().clone() for p in contest.trained])
            assert expected is not None, f"{BASELINE} comes first"
            difference = abs(loss - expected.loss) / expected.loss
            agreement.note(name, difference, _measure_distance(contest.trained, expected.gradient))
        expected = None
    contest.policy.zero_grad()
    agreement.mean_loss = sum(losses) / len(losses)
    if is_exact:
        rounding = round_of_sums(contest, collated[PRECOMPUTE])
        agreement.loss_limit = agreement.gradient_limit = max(LIMIT, rounding)
    else:
        agreement.loss_limit = FACTOR * max(agreement.loss[BASELINE], spread)
        agreement.gradient_limit = FACTOR * agreement.gradient[BASELINE]
    agreement.require()
    if min(abs(loss - math.log(2)) for loss in losses) < ALIKE:
        raise DisagreementError("the loss is ln 2: policy and reference are too alike for a comparison")
    return agreement


def round_of_sums(contest: Contest, batches: list[dict[str, Any]]) -> float:
    """What the rounding of one log-prob sum in float32 does to loss and gradient.

    A sum near -700 is good to 6e-5, one near -7,000 to 5e-4; loss and gradient see beta times that.
    """
    largest = max(float(batch[f"ref_{side}_logps"].abs().max()) for batch in batches for side in SIDES)
    return contest.beta * float(np.spacing(np.float32(largest)))


@dataclass(frozen=True)
class Step:
    """Losses of the pairs (or of the batch), and the gradient of their mean, in the memory of the host."""

    losses: list[float]
    gradient: list[torch.Tensor]

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def compute_in_float32(contest: Contest, rows: list[Row]) -> Step:
    """Loss and gradient of a batch by plain TRL in float32, from the very same weights, one pair at a time.

    Half precision turns into float32 and back without loss, so the weights change their type in place: no second
    model is in memory. Policy and reference take turns, and the one that waits lies in the memory of the host.
    """
    contest.release_optimizer()
    weights = [] if contest.reference is None else list(contest.reference.parameters())
    with _cast(weights or contest.policy.parameters(), torch.float32):
        pairs = [contest.compute_reference([row], autocast=None) for row in rows]
    plain = replace(contest.variants[PRECOMPUTE], autocast=None)
    losses = []
    with _cast(weights, contest.dtype, torch.device("cpu")), _cast(contest.policy.parameters(), torch.float32):
        for pair in pairs:
            losses.append(plain.differentiate(contest.collate(PRECOMPUTE, pair)).item())
        gradient = [parameter.grad.cpu() / len(pairs) for parameter in contest.trained]
    return Step(losses, gradient)


@torch.no_grad()
def measure_spread(contest: Contest, rows: list[Row], expected: Step) -> float:
    """TRL's own relative error of the loss in half precision, root mean square over pairs computed alone.

    The error of one loss is a single draw, which is near 0 by chance now and then, and then no other right step would
    be within 1.5 times of it. By the mean of squares it is at least the error of the mean.
    """
    variant = contest.variants[BASELINE]
    found = [variant.compute_loss(contest.collate(BASELINE, [row])).item() for row in rows]
    squares = [(loss - other) ** 2 for loss, other in zip(found, expected.losses, strict=True)]
    return math.sqrt(sum(squares) / len(squares)) / expected.loss


@contextmanager
def _cast(
    parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype, device: torch.device | None = None
) -> Iterator[None]:
    """Gives parameters another type, and place, without their gradients; afterwards they are what they were."""
    before = [(parameter, parameter.dtype, parameter.device) for parameter in parameters]
    for parameter, _, place in before:
        parameter.grad = None
        parameter.data = parameter.data.to(device or place, dtype)
    try:
        yield
    finally:
        for parameter, old, place in before:
            parameter.grad = None
            parameter.data = parameter.data.to(place, old)


def _measure_distance(trained: list[torch.nn.Parameter], expected: list[torch.Tensor]) -> float:
    """Norm of the difference of the parameters' gradients from the expected ones, over the norm of these."""
    difference = norm = 0.0
    for parameter, gradient in zip(trained, expected, strict=True):
        gradient = gradient.to(parameter.device).float()
        assert parameter.grad is not None, "every trained parameter has a gradient"
        difference += (parameter.grad.float() - gradient).square().sum().item()
        norm += gradient.square().sum().item()
    return math.sqrt(difference / norm)
