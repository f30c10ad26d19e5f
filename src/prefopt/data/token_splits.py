"""Token ids of the splits of a run, from the records that were read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import LossOn, OnControlToken
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.control_tokens import ControlTokens, treat_control_tokens
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.loading import Splits
from prefopt.data.notes import DataNotes, SplitName
from prefopt.data.records import Record
from prefopt.data.tokenize import Tokenized, tokenize_pairs, tokenize_sft
from prefopt.data.turns import Turns
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSplits:
    """The splits as `datasets.Dataset` of token ids; see `prefopt.data.tokenize.Tokenized` for the columns."""

    kind: Kind
    train: "Dataset"
    held_out: "Dataset | None"
    notes: DataNotes


def load_tokenized(
    splits: Splits, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, *, loss_on: LossOn = LossOn.completions
) -> TokenizedSplits:
    """Returns the token ids of both splits, and adds the counts of tokenization to the notes of `splits`.

    Args:
        splits: The result of `read_splits`.
        tokenizer: The policy's tokenizer.
        config: Length limit, and what happens to rows beyond it.
        loss_on: Which tokens of demonstrations are trained; without effect on pairs.

    Raises:
        UserError: A row is refused, or no row of a split is left; it names the row or the split.
    """
    sides: dict[SplitName, Sequence[Record] | None] = {"train": splits.train, "held_out": splits.held_out}
    # Where a prompt ends is a guess if the rows have none: in a text it makes no difference, in turns it does.
    are_guessed = any(notes.num_word_prompts for notes in splits.notes.read.values())
    rows = [records for records in sides.values() if records is not None]
    turns = Turns() if are_guessed else Turns.of(rows, tokenizer, config)
    bad = {split: BadRows(f"data.{split}", config) for split, records in sides.items() if records is not None}
    tables = {
        split: _tokenize(splits, split, sides[split] or (), turns, tokenizer, config, loss_on, each)
        for split, each in bad.items()
    }
    require_usable(*bad.values())
    for split, notes in splits.notes.tokenized.items():
        if not notes.num_kept:
            raise UserError(f"data.{split}: no rows are left after tokenizing. {splits.notes.reasons()}")
    return TokenizedSplits(
        kind=splits.kind, train=tables["train"], held_out=tables.get("held_out"), notes=splits.notes
    )


def _tokenize(
    splits: Splits,
    split: SplitName,
    records: Sequence[Record],
    turns: Turns,
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
    loss_on: LossOn,
    bad: BadRows,
) -> "Dataset":
    limits: dict[str, Any] = {
        "max_length": config.max_length,
        "on_long_prompt": config.decide("on_long_prompt"),
        "on_long_completion": config.on_long_completion,
        "on_extra_eos": config.decide("on_extra_eos"),
        "bad": bad,
    }
    control = ControlTokens(tokenizer)

    def prepare(chunk: list[Any], notes: TokenizeNotes, bad: BadRows) -> Sequence[Any]:
        made = turns.make(chunk)
        notes.num_as_chat = sum(new is not old for new, old in zip(made, chunk, strict=True))
        treated = treat_control_tokens(made, control, config.on_control_token, bad)
        notes.first_control_token = treated.first
        if config.on_control_token is OnControlToken.strip:
            notes.num_control_stripped = treated.num_rows
        else:
            notes.num_control_kept = treated.num_rows
        return treated.records

    tokenize: dict[Kind, Callable[..., Tokenized]] = {
        "preference": tokenize_pairs,
        "sft": partial(tokenize_sft, loss_on=loss_on),
    }
    tokenized = tokenize[splits.kind](records, tokenizer, **limits, prepare=prepare)
    notes = splits.notes.tokenized[split] = tokenized.notes
    notes.num_not_chat = turns.num_obstacles if notes.num_plain else 0
    return tokenized.dataset
