"""Limits of a model (context length, vocabulary), and checks of data, tokenizer and answers before training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from prefopt.config.schema import ModelConfig
from prefopt.data.token_splits import TokenizedSplits
from prefopt.data.wording import agree
from prefopt.models.load import count_tokens, find_base, from_pretrained
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Limits:
    """Limits that a model's configuration states.

    Attributes:
        model: Path or id of the model.
        context: Most tokens of one sequence; None if the configuration gives no limit.
        num_tokens: Rows of the embedding; None if the configuration does not give it.
    """

    model: str
    context: int | None
    num_tokens: int | None

    @classmethod
    def of(cls, config: ModelConfig) -> "Limits":
        """Returns the limits of a model; the context of an adapter is that of its base.

        Raises:
            UserError: The model's configuration cannot be read.
        """
        base = find_base(config)
        text = from_pretrained(AutoConfig, base or config).get_text_config()
        # An adapter may contain an embedding for its own tokenizer, so the vocabulary of the base is no limit.
        return cls(config.path, _read_context(text), None if base else getattr(text, "vocab_size", None))

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase", config: ModelConfig) -> None:
        """Refuses a tokenizer with more tokens than the embedding has rows, unless `model.resize_embeddings` is set.

        Raises:
            UserError: It names the first token without a row.
        """
        if self.num_tokens is None or config.resize_embeddings or count_tokens(tokenizer) <= self.num_tokens:
            return
        first = min(id_ for id_ in tokenizer.get_vocab().values() if id_ >= self.num_tokens)
        raise UserError(
            f"model.path={self.model}: its tokenizer gives {tokenizer.convert_ids_to_tokens(first)!r} the id {first}, "
            f"and its embedding has {self.num_tokens} rows. Use the tokenizer that the model was trained with, or let "
            "the embedding grow with model.resize_embeddings=true."
        )

    def check_data(self, data: TokenizedSplits) -> None:
        """Refuses training and held-out rows that are longer than the model's context.

        Raises:
            UserError: It names the first such row.
        """
        for split in ("train", "held_out"):
            rows = getattr(data, split)
            if rows is not None and len(rows):
                self.check_rows(rows, f"data.{split}")

    def check_rows(self, rows: "Dataset", name: str) -> None:
        """Refuses rows of one data set that are longer than the model's context; `name` is its setting, for errors."""
        if self.context is None or not len(rows):
            return
        lengths = _lengths(rows)
        too_long = np.flatnonzero(lengths > self.context)
        if len(too_long):
            first, count = int(too_long[0]), f"{len(too_long)} such {agree('[row|rows]', len(too_long))}"
            raise UserError(
                f"{name}: {rows[first]['source']} has {lengths[first]} tokens, and {self.model} reads at most "
                f"{self.context} ({count}). Set data.max_length={self.context}: longer completions are then handled "
                "by data.on_long_completion, longer prompts by data.on_long_prompt, and counted."
            )

    def check_answers(self, prompts: list[list[int]], max_new_tokens: int, without: str = "") -> None:
        """Refuses a `max_new_tokens` with which an answer could exceed the model's context.

        Args:
            prompts: Token ids of what is answered.
            max_new_tokens: The value of `evaluation.max_new_tokens`.
            without: Overrides with which nothing is answered; empty if there are none.

        Raises:
            UserError: It names the prompts that leave room for it and, if that suffices, a smaller value.
        """
        longest = max(map(len, prompts), default=0)
        if self.context is None or longest + max_new_tokens <= self.context or not longest:
            return
        room = self.context - longest
        ways = [f"evaluation.max_new_tokens={room} (shorter answers)"] if room >= max(max_new_tokens // 2, 1) else []
        shorter = self.context - max_new_tokens
        if 2 * sum(len(prompt) < shorter for prompt in prompts) >= len(prompts):
            ways.append(f"data.max_length={shorter} data.on_long_prompt=skip (no longer prompts)")
        ways += [f"{without} (no answers)"] if without else []
        remedy = f"Set {', or '.join(ways)}." if ways else "Use shorter prompts, or a model that reads more."
        raise UserError(
            f"evaluation.max_new_tokens={max_new_tokens}: after the longest of the sampled prompts, {longest} tokens, "
            f"an answer would go beyond the {self.context} that {self.model} reads at most. {remedy}"
        )


def _read_context(config: "PreTrainedConfig") -> int | None:
    """Returns the context length in tokens, including the scaling of the rotary embedding; None if unknown."""
    known: int | None = getattr(config, "max_position_embeddings", None)
    if known is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
    stretched = [(kind.get("original_max_position_embeddings") or known) * (kind.get("factor") or 1) for kind in kinds]
    return int(max([known, *stretched]))


def _lengths(rows: "Dataset") -> NDArray[np.int64]:
    """Returns the number of tokens of each row of a tokenised data set; for a pair, prompt + longer completion."""
    import pyarrow.compute as pc

    def of(column: str) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = pc.list_value_length(rows.data.column(column)).to_numpy().astype(np.int64)
        return lengths

    if "input_ids" in rows.column_names:
        return of("input_ids")
    return of("prompt_ids") + np.maximum(of("chosen_ids"), of("rejected_ids"))
