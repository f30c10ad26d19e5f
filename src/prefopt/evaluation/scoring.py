"""Log-probabilities of completions, one value per completion; independent of batch size, padding and order."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from trl.trainer.utils import add_fused_lm_head

from prefopt.config.choices import Precision
from prefopt.config.schema import TrainConfig
from prefopt.data.ragged import PairLogps, PairTable, Ragged
from prefopt.distributed.group import place, pool, share_out
from prefopt.evaluation.statistics import Floats
from prefopt.models import load
from prefopt.models.kernels import fuse_layers
from prefopt.models.lookup import StoredLogps
from prefopt.models.shared_prefix import share_prompts
from prefopt.models.shared_prefix.collate import PairCollator
from prefopt.process.pace import Pace

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
IGNORED = -100
READ_PAIRS = 4096
"""Pairs whose stored log-probs are in memory at once while they are summed up."""


@dataclass(frozen=True)
class ScoredSequence:
    """A token sequence; `labels` equal `input_ids` at the scored positions and are -100 elsewhere."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """Sums of log-probs and token counts, each of shape (sequences,)."""

    logps: Floats
    lengths: Floats

    @classmethod
    def joined(cls, parts: "Sequence[Scores]") -> "Scores":
        """Returns the scores of the parts' sequences, one part after another."""
        logps, lengths = ([getattr(part, name) for part in parts] for name in ("logps", "lengths"))
        return cls(np.concatenate(logps), np.concatenate(lengths))

    @property
    def avg_logps(self) -> Floats:
        """Mean log-prob per scored token; 0 where nothing was scored."""
        return self.logps / np.maximum(self.lengths, 1)


@dataclass(frozen=True)
class PairScores:
    """Scores of both sides of the same pairs."""

    chosen: Scores
    rejected: Scores

    @classmethod
    def of(cls, logps: PairLogps) -> "PairScores":
        """Sums up the log-probs of the tokens."""
        chosen, rejected = (Scores(side.sums(), side.lengths.astype(float)) for side in (logps.chosen, logps.rejected))
        return cls(chosen, rejected)

    @classmethod
    def of_stored(cls, table: PairTable, logps: StoredLogps) -> "PairScores":
        """Sums up stored log-probs of the tokens that are trained, some pairs at a time."""
        starts = range(0, max(len(table), 1), READ_PAIRS)
        bounds = [(start, min(start + READ_PAIRS, len(table))) for start in starts]
        parts = [cls.of(table.part(*bound).trained(logps.read(*bound))) for bound in bounds]
        return cls(Scores.joined([part.chosen for part in parts]), Scores.joined([part.rejected for part in parts]))

    @property
    def margins(self) -> Floats:
        """Average log-prob of chosen minus that of rejected, shape (pairs,)."""
        return self.chosen.avg_logps - self.rejected.avg_logps


@dataclass(frozen=True)
class Scorer:
    """A model ready to score sequences.

    Connected ranks, each with a whole model, divide the batches among them, and each gets all results.

    Attributes:
        model: A causal language model, or a PeftModel.
        pad_token_id: Pads batches; it is masked and never scored.
        batch_size: Pairs per forward, so twice as many sequences.
        bf16: Compute in bfloat16 (the log-softmax stays float32).
        shares_prompts: Whether the model has the hooks of `SharedPrefix`.
    """

    model: Any
    pad_token_id: int
    batch_size: int
    bf16: bool = False
    shares_prompts: bool = False

    @classmethod
    def of(cls, model: "PreTrainedModel | PeftModel", config: TrainConfig, pad_token_id: int) -> "Scorer":
        """Moves the model to this process's device and gives it TRL's chunked head (no full logits in memory).

        Args:
            model: A causal language model, or a PeftModel.
            config: Batch size, precision, and whether the prompt of a pair is computed once.
            pad_token_id: Padding token of the tokenizer.
        """
        model.eval().requires_grad_(False)
        if not getattr(model, "is_quantized", False):  # a quantised model was loaded onto its device
            model.to(load.choose_device())
        add_fused_lm_head(model.get_base_model() if hasattr(model, "peft_config") else model)
        fuse_layers(model, config, model.device, level=logging.DEBUG, is_strict=False)
        engine = None
        if config.algorithm.trains_pairs:
            engine = share_prompts(model, config, model.device, level=logging.DEBUG, is_strict=False)
        bf16 = config.trainer.precision is Precision.bf16
        return cls(model, pad_token_id, config.evaluation.batch_size, bf16, engine is not None)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def score(self, sequences: Sequence[ScoredSequence]) -> Scores:
        """Scores all sequences, batched by length; the results are in the order of the input."""
        scores = Scores(np.zeros(len(sequences)), np.zeros(len(sequences)))

        def score_batch(rows: NDArray[np.int64]) -> Scores:
            batch = self._collate([sequences[row] for row in rows])
            out = self.model(**batch, use_cache=False, fused_lm_head=True)
            lengths = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
            pace.advance(len(rows))
            return Scores(out.log_probs.double().sum(dim=1).cpu().numpy(), lengths.cpu().numpy())

        batches = list(self._batches(sequences))
        pace = Pace("evaluation: texts", len(sequences) // place()[1], logger)
        with torch.no_grad(), self.autocast():
            for rows, scored in zip(batches, share_out(batches, score_batch), strict=True):
                scores.logps[rows], scores.lengths[rows] = scored.logps, scored.lengths
        return scores

    def score_pairs(self, table: PairTable) -> PairLogps:
        """Returns the log-probs of all completions' tokens, in the order of the table."""
        chosen: list[Any] = [None] * len(table)
        rejected: list[Any] = [None] * len(table)
        pace = Pace("evaluation: pairs", len(table) // place()[1], logger)
        mine = []
        for rows, logps in self.iterate_pairs(table, np.arange(len(table))):
            mine.append((rows, logps))
            pace.advance(len(rows))
        for rows, logps in chain(*pool(mine)):
            for number, row in enumerate(rows):
                chosen[row], rejected[row] = logps.chosen[number], logps.rejected[number]
        return PairLogps(Ragged.of(chosen, np.float32), Ragged.of(rejected, np.float32))

    def iterate_pairs(
        self, table: PairTable, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], PairLogps]]:
        """Yields batches of `rows`, longest pairs first, each with the log-probs of its completions' tokens.

        Each of n connected ranks gets every n-th batch. All run equally many forwards, as a model that is sharded over
        them needs: a rank without a batch left computes the first batch again and yields no rows of it.
        """
        collate = PairCollator(self.pad_token_id, with_layout=self.shares_prompts)
        order = rows[np.argsort(-table.lengths[rows].sum(axis=1), kind="stable")]
        rank, num_ranks = place()
        step = self.batch_size * num_ranks
        for start in range(rank * self.batch_size, -(-len(order) // step) * step, step):
            batch_rows = order[start : start + self.batch_size]
            is_filling = not len(batch_rows)
            if is_filling:
                batch_rows = order[: self.batch_size]
            batch = collate(table.examples(batch_rows))
            scored = batch.pop("completion_mask")[:, 1:].bool()
            labels = torch.full_like(batch["input_ids"], IGNORED)
            labels[:, 1:] = batch["input_ids"][:, 1:].masked_fill(~scored, IGNORED)
            batch = send_to_device({**batch, "labels": labels}, self.device)
            with torch.no_grad(), self.autocast():
                out = self.model(**batch, use_cache=False, fused_lm_head=True)
            logps = out.log_probs.float().cpu()
            sides = [
                Ragged.of([row[mask].numpy() for row, mask in zip(*side, strict=True)], np.float32)
                for side in zip(logps.chunk(2), scored.chunk(2), strict=True)
            ]
            yield batch_rows[:0] if is_filling else batch_rows, PairLogps(*sides)

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
        batch: dict[str, torch.Tensor] = send_to_device(
            {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}, self.device
        )
        return batch


def completion(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> ScoredSequence:
    """The sequence prompt + completion, scored on the completion."""
    return ScoredSequence([*prompt_ids, *completion_ids], [IGNORED] * len(prompt_ids) + list(completion_ids))
