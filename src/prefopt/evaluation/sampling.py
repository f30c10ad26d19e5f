"""Answers of a model to prompts: sampled for drift, greedy for people to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefopt.evaluation.scoring import Scorer

PROMPTS_PER_BATCH = 16
"""Fixed, because the random numbers of a sample depend on its batch."""


@dataclass(frozen=True)
class Answer:
    """Token ids of an answer (with its end-of-sequence, if it reached one)."""

    ids: list[int]
    finished: bool

    @property
    def repetition(self) -> float:
        """Share of 4-grams that occurred before in the same answer, in [0, 1]."""
        grams = [tuple(self.ids[i : i + 4]) for i in range(len(self.ids) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


def generate(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int | None,
) -> list[Answer]:
    """Answers every prompt (token ids): at temperature 1 from the whole distribution, or greedily without a seed."""
    ends = _end_ids(scorer.model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=scorer.pad_token_id,
        do_sample=seed is not None,
        repetition_penalty=1.0,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if seed is not None else {}),
    )
    answers: list[Answer] = []
    with torch.random.fork_rng(), torch.inference_mode(), scorer.autocast():
        if seed is not None:
            torch.manual_seed(seed)
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            batch = _left_pad(prompts[start : start + PROMPTS_PER_BATCH], scorer.pad_token_id)
            batch = {name: tensor.to(scorer.device) for name, tensor in batch.items()}
            out = scorer.model.generate(**batch, generation_config=settings)
            answers += [_cut(row.tolist(), ends) for row in out[:, batch["input_ids"].shape[1] :]]
    return answers


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | {tokenizer.eos_token_id}


def _cut(ids: list[int], ends: set[int]) -> Answer:
    for position, token in enumerate(ids):
        if token in ends:
            return Answer(ids[: position + 1], finished=True)
    return Answer(ids, finished=False)


def _left_pad(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    return {
        "input_ids": torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }
