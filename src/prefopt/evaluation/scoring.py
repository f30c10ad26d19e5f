"""Log-probabilities of completions, one value per completion: independent of batch size, padding and order."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trl.trainer.utils import add_fused_lm_head

from prefopt.evaluation.statistics import Floats

IGNORED = -100


@dataclass(frozen=True)
class ScoredSequence:
    """A token sequence and where it is scored: `labels` equal `input_ids` there and -100 elsewhere."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """Sums of log-probs and token counts, each of shape (sequences,)."""

    logps: Floats
    lengths: Floats

    @property
    def avg_logps(self) -> Floats:
        """Mean log-prob per scored token; 0 where nothing was scored."""
        return self.logps / np.maximum(self.lengths, 1)


@dataclass(frozen=True)
class PairScores:
    """Scores of both sides of the same pairs."""

    chosen: Scores
    rejected: Scores

    @property
    def margins(self) -> Floats:
        """Average log-prob of chosen minus that of rejected, shape (pairs,)."""
        return self.chosen.avg_logps - self.rejected.avg_logps


@dataclass(frozen=True)
class Scorer:
    """A model ready to be scored.

    Attributes:
        model: A causal language model, or a PeftModel.
        pad_token_id: Fills batches; it is masked and never scored.
        batch_size: Pairs per forward, so twice as many sequences.
        bf16: Compute in bfloat16 (the log-softmax stays float32).
    """

    model: Any
    pad_token_id: int
    batch_size: int
    bf16: bool = False

    @classmethod
    def of(cls, model: Any, *, pad_token_id: int, batch_size: int, bf16: bool) -> "Scorer":
        """Moves the model to the device that evaluates and gives it TRL's chunked head (no full logits in memory)."""
        model.eval().requires_grad_(False)
        quantised = getattr(model, "is_quantized", False)
        if torch.cuda.is_available() and not quantised:
            model.to("cuda")
        add_fused_lm_head(model.get_base_model() if hasattr(model, "peft_config") else model)
        return cls(model, pad_token_id, batch_size, bf16)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def score(self, sequences: Sequence[ScoredSequence]) -> Scores:
        """Scores every sequence; batches hold sequences of like length, results keep the order of the input."""
        logps = np.zeros(len(sequences))
        lengths = np.zeros(len(sequences))
        with torch.inference_mode(), self.autocast():
            for rows in self._batches(sequences):
                batch = self._collate([sequences[row] for row in rows])
                out = self.model(**batch, use_cache=False, fused_lm_head=True)
                logps[rows] = out.log_probs.double().sum(dim=1).cpu().numpy()
                lengths[rows] = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).cpu().numpy()
        return Scores(logps, lengths)

    def score_pairs(self, pairs: Any) -> PairScores:
        """Scores a tokenised data set with the columns prompt_ids, chosen_ids and rejected_ids."""
        sequences = [completion(p, c) for p, c in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True)]
        sequences += [completion(p, r) for p, r in zip(pairs["prompt_ids"], pairs["rejected_ids"], strict=True)]
        scores, n = self.score(sequences), len(pairs)
        return PairScores(
            Scores(scores.logps[:n], scores.lengths[:n]),
            Scores(scores.logps[n:], scores.lengths[n:]),
        )

    def _batches(self, sequences: Sequence[ScoredSequence]) -> Iterator[NDArray[np.int64]]:
        order = np.argsort([-len(sequence.input_ids) for sequence in sequences], kind="stable")
        size = 2 * self.batch_size
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _collate(self, sequences: list[ScoredSequence]) -> dict[str, torch.Tensor]:
        width = max(len(sequence.input_ids) for sequence in sequences)
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        labels = torch.full((len(sequences), width), IGNORED)
        attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            length = len(sequence.input_ids)
            input_ids[row, :length] = torch.tensor(sequence.input_ids)
            labels[row, :length] = torch.tensor(sequence.labels)
            attention_mask[row, :length] = 1
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def completion(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> ScoredSequence:
    """The sequence prompt + completion, scored on the completion."""
    return ScoredSequence([*prompt_ids, *completion_ids], [IGNORED] * len(prompt_ids) + list(completion_ids))
