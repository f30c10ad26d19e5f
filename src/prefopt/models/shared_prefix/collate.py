"""Collator from tokenised pairs to the padded batch that TRL's DPO trainer expects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefopt.data.ragged import CONTEXT_COLUMNS
from prefopt.models.shared_prefix import LAYOUT, PairLayout
from prefopt.models.shared_prefix.layout import SHARE_FROM

REFERENCE_COLUMNS = ("ref_chosen_per_token", "ref_rejected_per_token")
"""Columns of rows: reference log-probs of the completions' tokens, from a store."""
REFERENCE = "ref_log_probs"
"""Key of a batch: reference log-probs, shape (2 pairs, width - 1), as TRL's head returns log-probs, 0 elsewhere."""


@dataclass
class PairCollator:
    """Pads pairs on the right to a batch `[chosen; rejected]` with the tensors of TRL's DataCollatorForPreference.

    If rows have `CONTEXT_COLUMNS`, `completion_mask` leaves out the turns inside a completion that are not trained.

    Attributes:
        pad_token_id: Token that pads rows; it is masked.
        with_layout: Whether to add the `PairLayout` of the batch, for a model whose prompts are shared.
        min_saving: Least share of the padded tokens that a layout must save; otherwise the batch gets no layout.
    """

    pad_token_id: int
    with_layout: bool = False
    min_saving: float = 0.03

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pairs = len(examples)
        lengths = [(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) for row in examples]
        width = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in lengths)
        input_ids = np.full((2 * pairs, width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((2 * pairs, width), dtype=np.int64)
        completion_mask = np.zeros((2 * pairs, width), dtype=np.int64)
        for index, (row, (prompt, *completions)) in enumerate(zip(examples, lengths, strict=True)):
            for lane, name, length in zip(
                (index, index + pairs), ("chosen_ids", "rejected_ids"), completions, strict=True
            ):
                input_ids[lane, :prompt] = row["prompt_ids"]
                input_ids[lane, prompt : prompt + length] = row[name]
                attention_mask[lane, : prompt + length] = 1
                completion_mask[lane, prompt : prompt + length] = 1
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
        batch: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if REFERENCE_COLUMNS[0] in examples[0]:
            logps = np.zeros((2 * pairs, width - 1), dtype=np.float32)
            logps[completion_mask[:, 1:] == 1] = np.concatenate(
                [row[name] for name in REFERENCE_COLUMNS for row in examples]
            )
            batch[REFERENCE] = torch.from_numpy(logps)
        if CONTEXT_COLUMNS[0] in examples[0]:
            _leave_out_contexts(examples, batch)
        if self.with_layout:
            layout = PairLayout.build(lengths, width, SHARE_FROM, completion_mask)
            if layout.num_tokens <= (1 - self.min_saving) * input_ids.size:
                batch[LAYOUT] = layout
        return batch


def _leave_out_contexts(examples: Sequence[dict[str, Any]], batch: dict[str, torch.Tensor]) -> None:
    """Sets completion mask and reference log-probs of a batch to 0 at tokens that are not trained."""
    for index, row in enumerate(examples):
        first = len(row["prompt_ids"])
        for lane, name in zip((index, index + len(examples)), CONTEXT_COLUMNS, strict=True):
            for start, end in zip(row[name][::2], row[name][1::2], strict=True):
                batch["completion_mask"][lane, first + start : first + end] = 0
    if REFERENCE in batch:
        batch[REFERENCE] *= batch["completion_mask"][:, 1:]
