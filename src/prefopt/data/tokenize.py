"""Token ids of pairs and demonstrations: the same as TRL 1.16 makes, but in batches and without its known defects.

The ids differ from TRL's in three cases: a completion of messages gets an end-of-sequence token if the chat template
writes none; one of two begin-of-sequence tokens is removed; `tools: []` means no tools. The trained tokens differ if a
completion has turns of users or tools, which TRL trains and prefopt does not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import UNREADABLE, BadRows, require_usable
from prefopt.data.control_tokens import ControlTokens
from prefopt.data.demonstrations import ExampleIds, encode_examples
from prefopt.data.encoding import (
    CHUNK_ROWS,
    IGNORED_LABEL,
    AnyRecord,
    Gate,
    SpecialTokens,
    TokenizeNotes,
    chunks,
    encode_parts,
    split_prompt,
)
from prefopt.data.id_table import Column, IdTable
from prefopt.data.messages import UNTRAINED, is_trained, trained_turns
from prefopt.data.ragged import CONTEXT_COLUMNS
from prefopt.data.records import PreferencePair, Record, SFTExample, message_fields
from prefopt.data.rendering import Chat, RefusedChatError, Span, locate_tokens, render_turns, unread_keys
from prefopt.process.errors import UserError
from prefopt.process.parallel import map_in_processes, processes_for

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


Encoded = TypeVar("Encoded")

Prepare = Callable[[list[Any], TokenizeNotes, BadRows], Sequence[Any]]
"""Makes of some records those that are encoded; it counts what it does in the notes, and tells of refused rows."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A `datasets.Dataset` of int32 lists, and the counts of its tokenization.

    Columns for pairs: `prompt_ids`, `chosen_ids`, `rejected_ids`, `source`, and `CONTEXT_COLUMNS` if a completion has
    turns that are not trained. Columns for demonstrations: `input_ids`, `labels` (-100 where there is no loss),
    `source`.
    """

    dataset: "Dataset"
    notes: TokenizeNotes


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    on_long_prompt: OnBadRow,
    on_long_completion: OnLongCompletion,
    on_extra_eos: OnBadRow,
    bad: BadRows | None = None,
    prepare: Prepare | None = None,
) -> Tokenized:
    """Returns prompt, chosen and rejected ids, with prompt + completion at most `max_length` tokens.

    The prompt is the common beginning of the tokenized prompt and both tokenized conversations, as in TRL. Turns of
    users and tools inside a completion, and turns marked as not trained, are context: they are part of its ids, and
    `CONTEXT_COLUMNS` give their ranges.

    Args:
        pairs: Records from `prefopt.data.reading`.
        tokenizer: A transformers tokenizer with an end-of-sequence token, and a chat template if pairs hold messages.
        max_length: Tokens of prompt + completion, >= 2.
        on_long_prompt: What happens to a pair whose prompt has `max_length` tokens or more.
        on_long_completion: What happens to a pair with a completion that exceeds `max_length`.
        on_extra_eos: What happens to a pair with a completion that has more end-of-sequence tokens than messages.
        bad: Gets the rows that are left out, of which the caller tells; it has the three settings too. None: refused
            rows are told here.
        prepare: Changes or refuses records before they are encoded. None: they are encoded as they are.

    Raises:
        UserError: The tokenizer cannot be used; or, with `bad=None`, a row is refused; it names the row.
    """
    special = SpecialTokens.of(tokenizer)

    def encode(
        chunk: list[PreferencePair], notes: TokenizeNotes
    ) -> list[tuple[list[list[int]], tuple[_Turns, _Turns] | None]]:
        parts = [(pair.prompt, pair.chosen, pair.rejected) for pair in chunk]
        has_context = [*map(_has_context, chunk)]
        located = _locate_turns_of_pairs(tokenizer, [*compress(chunk, has_context)], notes)
        turns = [next(located) if has else None for has in has_context]
        return list(zip(encode_parts(tokenizer, special.eos, parts, chunk, notes), turns, strict=True))

    def to_rows(chunk: list[PreferencePair], gate: Gate, notes: TokenizeNotes) -> Iterator[tuple[Any, ...]]:
        for pair, (sequences, turns) in _encode_each(chunk, encode, gate.bad, notes):
            row = _pair_row(pair, sequences, turns, gate, notes)
            if row is not None:
                yield (*row, pair.source)

    work = _Work(pairs, tokenizer, special, max_length, on_long_completion, to_rows, prepare)
    limits = DataConfig(
        train="", on_long_prompt=on_long_prompt, on_long_completion=on_long_completion, on_extra_eos=on_extra_eos
    )
    return work.run(IdTable(("prompt_ids", "chosen_ids", "rejected_ids"), CONTEXT_COLUMNS), bad, limits)


def tokenize_sft(
    examples: Sequence[SFTExample],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    loss_on: LossOn,
    on_long_prompt: OnBadRow,
    on_long_completion: OnLongCompletion,
    on_extra_eos: OnBadRow,
    bad: BadRows | None = None,
    prepare: Prepare | None = None,
) -> Tokenized:
    """Returns input ids and labels, at most `max_length` tokens each.

    With `loss_on=completions`, the loss is on the assistant's turns in the completion or in `messages`, including the
    tokens that end a turn, but not on turns that are marked as not trained. With `all`, and for rows of `text`, it is
    on every token.

    Args:
        examples: Records from `prefopt.data.reading`.
        tokenizer: A transformers tokenizer with an end-of-sequence token, and a chat template if rows hold messages.
        max_length: Tokens per row, >= 2.
        loss_on: Which tokens are trained.
        on_long_prompt: What happens to a row whose first trained token lies at `max_length` or beyond.
        on_long_completion: What happens to a row of more than `max_length` tokens.
        on_extra_eos: What happens to a row that has more end-of-sequence tokens than messages.
        bad: Gets the rows that are left out, of which the caller tells; it has the three settings too. None: refused
            rows are told here.
        prepare: Changes or refuses records before they are encoded. None: they are encoded as they are.

    Raises:
        UserError: The tokenizer cannot be used; or, with `bad=None`, a row is refused; it names the row.
    """
    special = SpecialTokens.of(tokenizer)

    def encode(chunk: list[SFTExample], notes: TokenizeNotes) -> list[ExampleIds]:
        return encode_examples(tokenizer, special, chunk, loss_on, notes)

    def to_rows(chunk: list[SFTExample], gate: Gate, notes: TokenizeNotes) -> Iterator[tuple[Any, ...]]:
        if loss_on is LossOn.all:
            _require_no_marks(chunk)
        for example, ids in _encode_each(chunk, encode, gate.bad, notes):
            row = _example_row(example, ids, loss_on, gate, notes)
            if row is not None:
                yield (*row, example.source)

    work = _Work(examples, tokenizer, special, max_length, on_long_completion, to_rows, prepare)
    limits = DataConfig(
        train="", on_long_prompt=on_long_prompt, on_long_completion=on_long_completion, on_extra_eos=on_extra_eos
    )
    return work.run(IdTable(("input_ids", "labels")), bad, limits)


class _Piece(NamedTuple):
    """What has become of some rows."""

    columns: list[Column]
    notes: TokenizeNotes
    bad: BadRows


@dataclass(frozen=True, slots=True)
class _Work:
    """Tokenises rows piece by piece, in several processes if there are many."""

    records: Sequence[Any]
    tokenizer: "PreTrainedTokenizerBase"
    special: SpecialTokens
    max_length: int
    on_long_completion: OnLongCompletion
    to_rows: Callable[[list[Any], Gate, TokenizeNotes], Iterator[tuple[Any, ...]]]
    """Encodes records that are all text, or all messages: the values of each row that is kept, and its place."""
    prepare: Prepare | None

    def run(self, table: IdTable, bad: BadRows | None, limits: DataConfig) -> Tokenized:
        """Returns the rows of all records; `bad` gets the rows that are left out, or they are told here."""
        notes = TokenizeNotes()
        told = BadRows("data.train", limits) if bad is None else bad
        starts = range(0, len(self.records), CHUNK_ROWS)
        encode = partial(self._encode, told.empty())
        for piece in map_in_processes(encode, starts, num_processes=processes_for(len(starts)), doing="tokenising"):
            table.add(piece.columns)
            notes.add(piece.notes)
            told.merge(piece.bad)
        told.num_rows += notes.num_rows
        notes.num_unreadable_skipped = told.num_skipped(UNREADABLE)
        notes.first_unreadable = told.first_skipped(UNREADABLE)
        if bad is None:
            require_usable(told)
        notes.num_kept = table.num_rows
        return Tokenized(table.to_dataset(), notes)

    def _encode(self, none_bad: BadRows, start: int) -> _Piece:
        """Tokenises the rows from `start` on; what it counts and finds bad is of these alone."""
        chunk = list(self.records[start : start + CHUNK_ROWS])
        notes, bad = TokenizeNotes(num_rows=len(chunk)), none_bad.empty()
        records = chunk if self.prepare is None else self.prepare(chunk, notes, bad)
        notes.num_plain = _count_plain(self.tokenizer, records)
        notes.unread_keys = _unread_keys(self.tokenizer, records)
        gate = Gate(self.max_length, self.on_long_completion, self.special, bad)
        rows = [row for chunk in chunks(records, kind=_form) for row in self.to_rows(chunk, gate, notes)]
        return _Piece(_to_columns(rows), notes, bad)


def _form(record: Record) -> type:
    return type(record.prompt)


def _encode_each(
    chunk: list[AnyRecord],
    encode: Callable[[list[AnyRecord], TokenizeNotes], list[Encoded]],
    bad: BadRows,
    notes: TokenizeNotes,
) -> Iterator[tuple[AnyRecord, Encoded]]:
    """Yields the records of a chunk, each encoded; those that cannot be rendered are left out.

    The records are encoded together, which is fast, or one by one if that fails for one of them.
    """
    before = replace(notes)
    try:
        yield from list(zip(chunk, encode(chunk, notes), strict=True))
        return
    except RefusedChatError as error:
        if len(chunk) == 1:
            bad.add(error.source, error.found, kind=UNREADABLE)
            return
    vars(notes).update(vars(before))  # the counts of what was encoded before it failed
    for record in chunk:
        yield from _encode_each([record], encode, bad, notes)


def _to_columns(rows: Sequence[tuple[Any, ...]]) -> list[Column]:
    """Returns the columns of a chunk's rows, of which the last value is the place."""
    if not rows:
        return []
    *ids, sources = zip(*rows, strict=True)
    return [*map(Column.of_ids, ids), Column.of_texts(sources)]


def _count_plain(tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record]) -> int:
    """Returns how many prompts are plain text without control tokens; 0 if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        return 0
    control = ControlTokens(tokenizer)
    return sum(isinstance(record.prompt, str) and not control.find(record.prompt) for record in records)


def _unread_keys(tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record]) -> dict[str, int]:
    """Returns the keys of messages that the chat template does not read, each with the number of rows that have it."""
    if not tokenizer.chat_template:
        return {}
    chats = ((record.source, chain.from_iterable(message_fields(record).values())) for record in records)
    return dict(sorted(unread_keys(tokenizer, chats).items()))


def _has_context(pair: PreferencePair) -> bool:
    """Returns whether a completion of the pair has turns that are not trained."""
    return not all(isinstance(side, str) or all(map(is_trained, side)) for side in (pair.chosen, pair.rejected))


class _Turns(NamedTuple):
    """Length of a tokenized conversation, and the ranges of its trained tokens."""

    length: int
    spans: list[Span]


def _locate_turns_of_pairs(
    tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[PreferencePair], notes: TokenizeNotes
) -> Iterator[tuple[_Turns, _Turns]]:
    """Yields for each pair the trained ranges of two conversations: prompt + chosen, and prompt + rejected."""
    if not pairs:
        return
    chats = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            messages = [*pair.prompt, *completion]
            trained = trained_turns(messages, len(pair.prompt))
            chats.append(Chat(messages, pair.tools, pair.chat_template_kwargs, False, pair.source, trained))
            notes.num_context_turns += len(completion) - len(trained)
    texts, characters = render_turns(tokenizer, chats)
    located = (_Turns(len(ids), spans) for ids, spans in locate_tokens(tokenizer, texts, characters))
    yield from zip(located, located, strict=True)


def _pair_row(
    pair: PreferencePair,
    sequences: list[list[int]],
    turns: tuple[_Turns, _Turns] | None,
    gate: Gate,
    notes: TokenizeNotes,
) -> tuple[list[int], ...] | None:
    """Returns one pair's values of the id and context columns, or None if it is skipped."""
    special = gate.special
    prompt_length = split_prompt(sequences, special, notes)
    if prompt_length == 0:
        gate.bad.add(
            pair.source,
            "the prompt has no token, so nothing predicts the completion's first one. "
            "Give a prompt; an empty one needs a tokenizer that adds a begin-of-sequence token.",
            kind=UNREADABLE,
        )
        return None
    prompt, *completions = sequences[0][:prompt_length], *(ids[prompt_length:] for ids in sequences[1:])
    contexts = [[], []] if turns is None else [_context(*pair) for pair in zip(turns, completions, strict=True)]
    num_eos = [ids.count(special.eos_id) for ids in completions]
    is_chat = isinstance(pair.chosen, list)
    allowed = [len(content) if is_chat else 1 for content in (pair.chosen, pair.rejected)]
    if not gate.admits_eos(pair.source, num_eos, allowed, notes):
        return None
    for ids, context, count in zip(completions, contexts, num_eos, strict=True):
        if count == 0 and is_chat:
            if context[-1:] == [len(ids)]:
                context[-1] += 1
            ids.append(special.eos_id)
            notes.num_eos_appended += 1
    longest = prompt_length + max(len(ids) for ids in completions)
    first_trained = prompt_length + max(context[1] if context[:1] == [0] else 0 for context in contexts)
    if not gate.admits(pair.source, prompt_length=first_trained, length=longest, notes=notes):
        return None
    room = gate.max_length - prompt_length
    chosen, rejected = (ids[:room] for ids in completions)
    if chosen == rejected:
        notes.num_equal_skipped += 1
        return None
    if longest > gate.max_length:
        notes.num_truncated += 1
        notes.num_eos_lost += sum(special.eos_id in ids[room:] for ids in completions)
    return prompt, chosen, rejected, *([min(bound, room) for bound in context] for context in contexts)


def _context(turns: _Turns, completion: list[int]) -> list[int]:
    """Returns the ranges of completion tokens that are not trained, as [start, end, start, end, ...]."""
    start = turns.length - len(completion)
    bounds = [0, *(max(bound - start, 0) for span in turns.spans for bound in span), len(completion)]
    ranges = zip(bounds[::2], bounds[1::2], strict=True)
    return [bound for begin, end in ranges if begin < end for bound in (begin, end)]


def _example_row(
    example: SFTExample, encoded: ExampleIds, loss_on: LossOn, gate: Gate, notes: TokenizeNotes
) -> tuple[list[int], list[int]] | None:
    """Returns ids and labels of one demonstration, or None if it is skipped."""
    ids, spans, num_ends = encoded
    special = gate.special
    num_eos = [ids[start:end].count(special.eos_id) for start, end in spans]
    if not gate.admits_eos(example.source, num_eos, num_ends, notes):
        return None
    is_chat = example.messages is not None or isinstance(example.completion, list)
    if num_eos[-1] == 0 and is_chat and spans[-1].end == len(ids):
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


def _require_no_marks(examples: Sequence[SFTExample]) -> None:
    """Refuses turns that are marked as not trained; called if every token is trained (`loss_on=all`)."""
    for example in examples:
        for content in (example.messages, example.completion):
            if isinstance(content, list) and any(UNTRAINED in message for message in content):
                raise UserError(
                    f"{example.source}: a turn is marked as not trained, but algorithm.loss_on=all trains every "
                    "token. Set algorithm.loss_on=completions, or remove the mark."
                )
