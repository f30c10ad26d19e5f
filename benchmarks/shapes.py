"""What is measured: sizes of models with random weights, and batches of preference pairs as token ids."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prefopt.config.choices import DataFormat, OnBadRow, OnLongCompletion
from prefopt.data.reading import read_records
from prefopt.data.tokenize import tokenize_pairs

Row = dict[str, Any]
Batches = list[list[Row]]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
RESERVED_IDS = 3
"""Ids below this one are padding and other special tokens; random text has none."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama of this size."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    is_tied: bool

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Returns the model with random weights, the same every time on one kind of device."""
        config = LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_size,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.is_tied,
            max_position_embeddings=8192,
        )
        torch.manual_seed(0)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


MODELS = {
    "tiny": ModelShape(2, 64, 2, 1, 32, 128, 512, False),
    "small": ModelShape(6, 256, 4, 2, 64, 688, 2048, False),
    "0.5B": ModelShape(24, 896, 14, 2, 64, 4864, 151936, True),
    "1B": ModelShape(16, 2048, 32, 8, 64, 8192, 128256, True),
    "3B": ModelShape(28, 3072, 24, 8, 128, 8192, 128256, True),
    "8B": ModelShape(32, 4096, 32, 8, 128, 14336, 128256, False),
}
"""In `small` the head is 11 % of the weights that are not embeddings (8B: 7 %). From 0.5B on: Qwen 2.5, Llama 3."""


@dataclass(frozen=True, slots=True)
class PairShape:
    """Lengths of pairs, in tokens.

    Attributes:
        draw: Returns prompt, chosen and rejected length of a pair.
        pairs: Pairs a batch.
        batches: Batches a round.
    """

    draw: Callable[[random.Random], tuple[int, int, int]]
    pairs: int = 4
    batches: int = 1

    def build(self, vocabulary: int, pairs: int | None = None) -> Batches:
        """Returns batches of random tokens, the same every time; `pairs` replaces the number of pairs a batch."""
        rng = random.Random(0)
        return [[self._row(rng, vocabulary) for _ in range(pairs or self.pairs)] for _ in range(self.batches)]

    def _row(self, rng: random.Random, vocabulary: int) -> Row:
        ids = [rng.choices(range(RESERVED_IDS, vocabulary), k=length) for length in self.draw(rng)]
        return dict(zip(COLUMNS, ids, strict=True))


def fixed(rng: random.Random, *, prompt: int, shortest: int, longest: int) -> tuple[int, int, int]:
    """A prompt of one length, answers of uniform length."""
    return prompt, rng.randint(shortest, longest), rng.randint(shortest, longest)


def mixed(rng: random.Random, *, prompt: float, answer: float, limit: int) -> tuple[int, int, int]:
    """Log-normal lengths of the given means; a pair's answers are alike in length (correlation 0.5 of the logs)."""
    both = rng.gauss(0, 1)

    def length(mean: float, spread: float, normal: float) -> int:
        return max(4, round(math.exp(math.log(mean) - spread**2 / 2 + spread * normal)))

    prompt_length = min(length(prompt, 0.9, rng.gauss(0, 1)), limit * 2 // 3)
    normals = [math.sqrt(0.5) * (both + rng.gauss(0, 1)) for _ in range(2)]
    chosen, rejected = (min(length(answer, 0.6, normal), limit - prompt_length) for normal in normals)
    return prompt_length, chosen, rejected


PAIRS = {
    "256/96": PairShape(partial(fixed, prompt=256, shortest=64, longest=128)),
    "768/100": PairShape(partial(fixed, prompt=768, shortest=72, longest=128)),
    "1024/256": PairShape(partial(fixed, prompt=1024, shortest=192, longest=320)),
    "mixed": PairShape(partial(mixed, prompt=180, answer=230, limit=1024), pairs=8, batches=1),
    "zero": PairShape(partial(fixed, prompt=1, shortest=96, longest=96)),
    "quick": PairShape(partial(fixed, prompt=32, shortest=8, longest=16), pairs=2),
    "quick mixed": PairShape(partial(mixed, prompt=24, answer=24, limit=96), pairs=3, batches=2),
}
"""prompt/answer in tokens. `mixed`: means like UltraFeedback's, 180 and 230. `zero`: nothing to share, no padding."""


def read_pairs(
    file: Path, tokenizer: Any, *, max_length: int, pairs: int, batches: int
) -> tuple[Batches, dict[str, int]]:
    """Returns batches of a preference file in random order (seed 0), and how many of its rows were kept and cut."""
    records: list[Any] = read_records(str(file), format=DataFormat.auto, kind="preference").records
    tokenized = tokenize_pairs(
        records,
        tokenizer,
        max_length=max_length,
        on_long_prompt=OnBadRow.skip,
        on_long_completion=OnLongCompletion.truncate,
        on_extra_eos=OnBadRow.skip,
    ).dataset
    rows = [{name: list(row[name]) for name in COLUMNS} for row in tokenized]
    rows = [row for row in rows if row["chosen_ids"] and row["rejected_ids"]]
    if len(rows) < pairs * batches:
        raise SystemExit(f"{file.name}: {len(rows)} usable pairs, {pairs * batches} wanted")
    num_cut = sum(len(row["prompt_ids"]) + max(map(len, list(row.values())[1:])) >= max_length for row in rows)
    random.Random(0).shuffle(rows)
    kept = {"rows": len(records), "kept": len(rows), "at_max_length": num_cut}
    return [rows[start : start + pairs] for start in range(0, pairs * batches, pairs)], kept
