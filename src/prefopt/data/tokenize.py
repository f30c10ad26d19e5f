"""Token ids of pairs and demonstrations: those that TRL 1.16 makes, in batches, with its known defects mended.

Where ids differ from TRL's: a completion of messages that the chat template leaves without an end-of-sequence token
gets one; of two begin-of-sequence tokens one is removed; `tools: []` means no tools.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from prefopt.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.data.encoding import (
    IGNORED_LABEL,
    Gate,
    IdTable,
    SpecialTokens,
    TokenizeNotes,
    chunks,
    drop_double_bos,
    encode,
    encode_chat_groups,
    with_eos,
)
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.data.rendering import (
    Chat,
    Span,
    common_prefix_length,
    locate_tokens,
    render_chats,
    render_turns,
    require_chat_template,
)
from prefopt.errors import UserError


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A `datasets.Dataset` of int32 lists, and what happened on the way.

    Columns: `prompt_ids`, `chosen_ids`, `rejected_ids`, `source` for pairs; `input_ids`, `labels`, `source` for
    demonstrations (a label of -100 has no loss).
    """

    dataset: Any
    notes: TokenizeNotes


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    *,
    max_length: int,
    on_long_prompt: OnBadRow,
    on_long_completion: OnLongCompletion,
    on_extra_eos: OnBadRow,
) -> Tokenized:
    """Returns prompt, chosen and rejected ids, with prompt + completion at most `max_length` tokens.

    The prompt is the common beginning of the tokenized prompt and both tokenized conversations, as in TRL.

    Args:
        pairs: What `prefopt.data.records` read.
        tokenizer: A transformers tokenizer with an end-of-sequence token, and a chat template if pairs hold messages.
        max_length: Tokens of prompt + completion, >= 2.
        on_long_prompt: What happens to a pair whose prompt has `max_length` tokens or more.
        on_long_completion: What happens to a pair with a completion that exceeds `max_length`.
        on_extra_eos: What happens to a pair with a completion that has more end-of-sequence tokens than messages.

    Raises:
        UserError: Naming the row.
    """
    notes = TokenizeNotes(num_rows=len(pairs))
    special = SpecialTokens.of(tokenizer)
    gate = Gate(max_length, on_long_prompt, on_long_completion, on_extra_eos, special)
    table = IdTable(("prompt_ids", "chosen_ids", "rejected_ids"))
    for chunk in chunks(pairs, kind=lambda pair: isinstance(pair.prompt, list)):
        parts = [(pair.prompt, pair.chosen, pair.rejected) for pair in chunk]
        for pair, sequences in zip(chunk, _encode_parts(tokenizer, special.eos, parts, chunk), strict=True):
            row = _pair_row(pair, sequences, gate, notes)
            if row is not None:
                table.add(row, pair.source)
        table.flush()
    gate.raise_refused()
    notes.num_kept = table.num_rows
    return Tokenized(table.to_dataset(), notes)


def tokenize_sft(
    examples: Sequence[SFTExample],
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: LossOn,
    on_long_prompt: OnBadRow,
    on_long_completion: OnLongCompletion,
    on_extra_eos: OnBadRow,
) -> Tokenized:
    """Returns input ids and labels, at most `max_length` tokens each.

    With `loss_on=completions`, loss is on the completion, or on every assistant turn of `messages` including what ends
    the turn; with `all`, and for `text`, it is on every token.

    Args:
        examples: What `prefopt.data.records` read.
        tokenizer: A transformers tokenizer with an end-of-sequence token, and a chat template if rows hold messages.
        max_length: Tokens per row, >= 2.
        loss_on: Which tokens are trained.
        on_long_prompt: What happens to a row whose first trained token lies at `max_length` or beyond.
        on_long_completion: What happens to a row of more than `max_length` tokens.
        on_extra_eos: What happens to a row that has more end-of-sequence tokens than messages.

    Raises:
        UserError: Naming the row.
    """
    notes = TokenizeNotes(num_rows=len(examples))
    special = SpecialTokens.of(tokenizer)
    gate = Gate(max_length, on_long_prompt, on_long_completion, on_extra_eos, special)
    table = IdTable(("input_ids", "labels"))
    for chunk in chunks(examples, kind=lambda example: (example.text is None, type(example.prompt))):
        for example, ids in zip(chunk, _encode_examples(tokenizer, special, chunk, loss_on, notes), strict=True):
            row = _example_row(example, ids, loss_on, gate, notes)
            if row is not None:
                table.add(row, example.source)
        table.flush()
    gate.raise_refused()
    notes.num_kept = table.num_rows
    return Tokenized(table.to_dataset(), notes)


def _encode_parts(
    tokenizer: Any, eos: str, parts: Sequence[tuple[Any, ...]], records: Sequence[PreferencePair | SFTExample]
) -> list[list[list[int]]]:
    """Returns, for each record, the ids of its prompt and of the prompt followed by each completion."""
    if isinstance(parts[0][0], str):
        texts = [
            text
            for prompt, *completions in parts
            for text in (prompt, *(prompt + with_eos(completion, eos) for completion in completions))
        ]
        sequences = iter(encode(tokenizer, texts, are_chats=False))
        return [list(islice(sequences, len(part))) for part in parts]
    require_chat_template(tokenizer, records[0].source)
    chats = [
        Chat(prompt + completion, record.tools, record.chat_template_kwargs, not completion, record.source)
        for (prompt, *completions), record in zip(parts, records, strict=True)
        for completion in ([], *completions)
    ]
    rendered = iter(render_chats(tokenizer, chats))
    return encode_chat_groups(tokenizer, [list(islice(rendered, len(part))) for part in parts])


def _split_prompt(sequences: list[list[int]], special: SpecialTokens, notes: TokenizeNotes) -> int:
    """Returns how many tokens the prompt, the first sequence, has in common with all others."""
    drop_double_bos(sequences, special, notes)
    prompt, *others = sequences
    length = min(common_prefix_length(prompt, ids) for ids in others)
    if length < len(prompt):
        notes.num_prompt_cut += 1
        notes.num_prompt_tokens_cut += len(prompt) - length
    return length


def _pair_row(
    pair: PreferencePair, sequences: list[list[int]], gate: Gate, notes: TokenizeNotes
) -> tuple[list[int], ...] | None:
    """Returns the three columns of one pair, or None where it is skipped."""
    special = gate.special
    prompt_length = _split_prompt(sequences, special, notes)
    if prompt_length == 0:
        raise UserError(
            f"{pair.source}: the prompt has no token, so nothing predicts the completion's first one. "
            "Give a prompt; an empty one needs a tokenizer that adds a begin-of-sequence token."
        )
    prompt, *completions = sequences[0][:prompt_length], *(ids[prompt_length:] for ids in sequences[1:])
    num_eos = [ids.count(special.eos_id) for ids in completions]
    is_chat = isinstance(pair.chosen, list)
    allowed = [len(content) if is_chat else 1 for content in (pair.chosen, pair.rejected)]
    if not gate.admits_eos(pair.source, num_eos, allowed, notes):
        return None
    for ids, count in zip(completions, num_eos, strict=True):
        if count == 0 and is_chat:
            ids.append(special.eos_id)
            notes.num_eos_appended += 1
    longest = prompt_length + max(len(ids) for ids in completions)
    if not gate.admits(pair.source, prompt_length=prompt_length, length=longest, notes=notes):
        return None
    room = gate.max_length - prompt_length
    chosen, rejected = (ids[:room] for ids in completions)
    if chosen == rejected:
        notes.num_equal_skipped += 1
        return None
    if longest > gate.max_length:
        notes.num_truncated += 1
        notes.num_eos_lost += sum(special.eos_id in ids[room:] for ids in completions)
    return prompt, chosen, rejected


class _ExampleIds(NamedTuple):
    """Ids of a whole demonstration, and the tokens that its assistant (or, for text, its author) wrote."""

    ids: list[int]
    spans: list[Span]


def _encode_examples(
    tokenizer: Any, special: SpecialTokens, examples: Sequence[SFTExample], loss_on: LossOn, notes: TokenizeNotes
) -> Iterator[_ExampleIds]:
    """Yields the ids of each example; all examples have the same fields."""
    if examples[0].messages is not None:
        yield from _encode_conversations(tokenizer, special, examples, loss_on, notes)
    elif examples[0].text is not None:
        texts = [with_eos(example.text or "", special.eos) for example in examples]
        for ids in encode(tokenizer, texts, are_chats=False):
            drop_double_bos([ids], special, notes)
            yield _ExampleIds(ids, [Span(0, len(ids))])
    else:
        parts = [(example.prompt, example.completion) for example in examples]
        for sequences in _encode_parts(tokenizer, special.eos, parts, examples):
            start = _split_prompt(sequences, special, notes)
            yield _ExampleIds(sequences[1], [Span(start, len(sequences[1]))])


def _encode_conversations(
    tokenizer: Any, special: SpecialTokens, examples: Sequence[SFTExample], loss_on: LossOn, notes: TokenizeNotes
) -> Iterator[_ExampleIds]:
    require_chat_template(tokenizer, examples[0].source)
    chats = [
        Chat(example.messages or [], example.tools, example.chat_template_kwargs, False, example.source)
        for example in examples
    ]
    if loss_on is LossOn.all:
        for ids in encode(tokenizer, render_chats(tokenizer, chats), are_chats=True):
            drop_double_bos([ids], special, notes)
            yield _ExampleIds(ids, [Span(0, len(ids))])
        return
    texts, turns = render_turns(tokenizer, chats)
    for ids, spans in locate_tokens(tokenizer, texts, turns):
        if drop_double_bos([ids], special, notes):
            spans = [Span(span.start - 1, span.end - 1) for span in spans]
        yield _ExampleIds(ids, spans)


def _example_row(
    example: SFTExample, encoded: _ExampleIds, loss_on: LossOn, gate: Gate, notes: TokenizeNotes
) -> tuple[list[int], list[int]] | None:
    """Returns ids and labels of one demonstration, or None where it is skipped."""
    ids, spans = encoded
    special = gate.special
    num_eos = [ids[start:end].count(special.eos_id) for start, end in spans]
    if not gate.admits_eos(example.source, num_eos, _allowed_eos(example, encoded, loss_on, special), notes):
        return None
    if num_eos[-1] == 0 and (example.messages or isinstance(example.completion, list)):
        ids.append(special.eos_id)
        spans[-1] = Span(spans[-1].start, len(ids))
        notes.num_eos_appended += 1
    if not gate.admits(example.source, prompt_length=spans[0].start, length=len(ids), notes=notes):
        return None
    labels = list(ids)
    if loss_on is LossOn.completions:
        labels = [IGNORED_LABEL] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
    if len(ids) > gate.max_length:
        notes.num_truncated += 1
        notes.num_eos_lost += special.eos_id in ids[gate.max_length :]
    return ids[: gate.max_length], labels[: gate.max_length]


def _allowed_eos(example: SFTExample, encoded: _ExampleIds, loss_on: LossOn, special: SpecialTokens) -> list[int]:
    """Returns how many end-of-sequence tokens each span may have: one for each message in it."""
    if example.text is not None:
        # Some tokenizers begin a text with the token that others end it with (OPT).
        return [1 + (encoded.ids[:1] == [special.bos_id] == [special.eos_id])]
    if isinstance(example.completion, list):
        return [len(example.completion)]
    if example.messages is not None and loss_on is LossOn.all:
        return [len(example.messages) + 1]  # the template may add a system message
    return [1] * len(encoded.spans)
