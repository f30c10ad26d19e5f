"""Log-probs that were computed before, where TRL's code expects a model."""

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


class ReferenceLogps(NamedTuple):
    """Chosen and rejected log-probs under the reference, each of shape (pairs,).

    Attributes:
        sums: Plain sums over the completion; every reported reward uses them.
        loss: Values for TRL's loss: the same sums, or sums discounted by `ld_alpha`.
    """

    sums: tuple[torch.Tensor, torch.Tensor]
    loss: tuple[torch.Tensor, torch.Tensor]


class Replay:
    """A stand-in for a model, which returns per-token log-probs that were computed before."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, **inputs: object) -> "Replay":
        return self


class Recorder:
    """Wraps a model and keeps the per-token log-probs of its last call."""

    def __init__(self, model: "torch.nn.Module | Recorder") -> None:
        self._model = model
        self.log_probs: torch.Tensor = torch.empty(0)

    def __call__(self, **inputs: object) -> "ModelOutput":
        outputs = self._model(**inputs)
        self.log_probs = outputs.log_probs
        return outputs
