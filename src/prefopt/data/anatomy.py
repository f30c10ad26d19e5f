"""What the model gets of one row: its token ids, which of them are trained, and what is cut off."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import is_question
from prefopt.data.control_tokens import ControlTokens, treat_control_tokens
from prefopt.data.defects import is_empty, is_identical
from prefopt.data.encoding import IGNORED_LABEL, TokenizeNotes
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.tokenize import Tokenized, tokenize_pairs, tokenize_sft
from prefopt.data.turns import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = sys.maxsize


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A part of a row as token ids.

    Attributes:
        name: `prompt`, `chosen` or `rejected` of a pair; `example` is a whole demonstration.
        ids: What the model gets, at most `data.max_length` with the prompt.
        trained: For each of `ids`: whether the loss is on it. The others are context.
        cut: The ids beyond `data.max_length`, which the model does not get.
    """

    name: str
    ids: list[int]
    trained: list[bool]
    cut: list[int]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One row as training sees it."""

    source: str
    """Place of the row, `path:line`."""
    sequences: list[TokenSequence]
    fate: str
    """Why training does not use the row, with the setting that decides; empty if it does."""
    is_refused: bool
    """Such a row ends the training; else it is left out."""
    form: str = ""
    """What other rows have decided about the form of this one; empty if nothing."""


def dissect(
    record: Record,
    rows: Sequence[Sequence[Record]],
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
    *,
    loss_on: LossOn,
) -> Anatomy:
    """Tokenises one record as training does, and keeps what training would cut off or leave out.

    Args:
        record: From `prefopt.data.shown_record.read_record`.
        rows: All rows of the run by split, from there too.
        tokenizer: The policy's tokenizer.
        config: Length limit, and what happens to rows beyond it.
        loss_on: Which tokens of a demonstration are trained; without effect on pairs.

    Raises:
        UserError: The row cannot be tokenised; it names the row.
    """
    turns = Turns.of(rows, tokenizer, config)
    (made,) = turns.make([record])
    (treated,) = treat_control_tokens([made], ControlTokens(tokenizer), config.on_control_token).records
    fate, decided = _fate_of_defects(treated, config) or _fate_of_length(treated, tokenizer, config, loss_on)
    whole = _tokenize(treated, tokenizer, NO_LIMIT, loss_on, OnLongCompletion.truncate)
    if whole.notes.num_equal_skipped:  # only pairs whose sides differ are tokenised
        whole = _tokenize(_with_another_rejected(treated), tokenizer, NO_LIMIT, loss_on, OnLongCompletion.truncate)
        (row,) = whole.dataset
        row |= {name.replace("chosen", "rejected"): ids for name, ids in row.items() if name.startswith("chosen")}
    else:
        (row,) = whole.dataset
    sequences = _of_pair(row, config.max_length) if "prompt_ids" in row else _of_example(row, config.max_length)
    is_refused = decided == OnBadRow.refuse.name
    return Anatomy(record.source, sequences, fate, is_refused, _describe_form(record, turns))


def _describe_form(record: Record, turns: Turns) -> str:
    if not turns.num_obstacles or not is_question(record):
        return ""
    rows = "1 row is" if turns.num_obstacles == 1 else f"{turns.num_obstacles:,} rows are"
    return (
        f"plain text, although the model has a chat template: {rows} no single question, or hold control tokens, and "
        "all rows have one form (data.as_chat=auto)"
    )


def _with_another_rejected(record: Record) -> PreferencePair:
    assert isinstance(record, PreferencePair), "only pairs have two sides"
    if isinstance(record.chosen, str):
        return replace(record, rejected=f"{record.chosen}.")
    *turns, last = record.chosen
    return replace(record, rejected=[*turns, {**last, "content": f"{last.get('content', '')}."}])


def _tokenize(
    record: Record, tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: LossOn, on_long: OnLongCompletion
) -> Tokenized:
    limits: dict[str, Any] = {
        "max_length": max_length,
        "on_long_prompt": OnBadRow.skip,
        "on_long_completion": on_long,
        "on_extra_eos": OnBadRow.refuse,
    }
    if isinstance(record, SFTExample):
        return tokenize_sft([record], tokenizer, loss_on=loss_on, **limits)
    return tokenize_pairs([record], tokenizer, **limits)


def _fate_of_defects(record: Record, config: DataConfig) -> tuple[str, str] | None:
    """Returns why the row is not used, and what the setting says that decides; None if it has no defect."""
    if is_empty(record):
        return _decided("a completion is empty", "on_empty", config)
    if is_identical(record):
        return _decided("chosen and rejected are equal", "on_identical", config)
    return None


def _decided(found: str, switch: str, config: DataConfig) -> tuple[str, str]:
    decided = config.decide(switch).name
    return f"{found} (data.{switch}={decided})", decided


def _fate_of_length(
    record: Record, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, loss_on: LossOn
) -> tuple[str, str]:
    """Returns as `_fate_of_defects`; two empty texts if the row is used."""
    setting = config.on_long_completion
    on_long = OnLongCompletion.skip if setting is OnLongCompletion.refuse else setting
    notes: TokenizeNotes = _tokenize(record, tokenizer, config.max_length, loss_on, on_long).notes
    if notes.num_long_prompt_skipped:
        return _decided(f"the prompt alone fills data.max_length={config.max_length}", "on_long_prompt", config)
    if notes.num_long_completion_skipped:
        found = f"longer than data.max_length={config.max_length} (data.on_long_completion={setting.name})"
        return found, setting.name
    if notes.num_equal_skipped:
        return f"the tokens of chosen and rejected are equal up to data.max_length={config.max_length}", ""
    return "", ""


def _of_pair(row: dict[str, Any], max_length: int) -> list[TokenSequence]:
    prompt: list[int] = row["prompt_ids"]
    room = max(max_length - len(prompt), 0)
    found = [TokenSequence("prompt", prompt[:max_length], [False] * len(prompt[:max_length]), prompt[max_length:])]
    for name in ("chosen", "rejected"):
        ids: list[int] = row[f"{name}_ids"]
        trained = [True] * len(ids)
        bounds: list[int] = row.get(f"{name}_context") or []
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            trained[start:end] = [False] * (end - start)
        found.append(TokenSequence(name, ids[:room], trained[:room], ids[room:]))
    return found


def _of_example(row: dict[str, Any], max_length: int) -> list[TokenSequence]:
    ids: list[int] = row["input_ids"]
    trained = [label != IGNORED_LABEL for label in row["labels"]]
    return [TokenSequence("example", ids[:max_length], trained[:max_length], ids[max_length:])]
