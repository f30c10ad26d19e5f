"""What holds for the ids of every row: one beginning, one end, and the limit on length."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

from prefopt.config.choices import OnBadRow, OnLongCompletion
from prefopt.data.messages import trained_turns
from prefopt.data.prefixes import common_prefix_length
from prefopt.data.records import MAX_CHARACTERS, Record, num_characters
from prefopt.data.rendering import Chat, count_lost_thoughts, render_chats, require_chat_template
from prefopt.process.errors import UserError

CHUNK_ROWS = 1000
"""Rows that are rendered and tokenized together."""

IGNORED_LABEL = -100
"""Label of a token without loss."""

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(kw_only=True)
class TokenizeNotes:
    """What happened while rows became ids. Counts are rows unless the name says otherwise."""

    num_rows: int = 0
    """Rows given."""
    num_kept: int = 0
    """Rows in the result."""
    num_long_prompt_skipped: int = 0
    """The prompt alone fills `max_length`."""
    num_long_completion_skipped: int = 0
    num_extra_eos_skipped: int = 0
    """A completion has more end-of-sequence tokens than messages."""
    num_truncated: int = 0
    """Kept rows of which a completion was cut at `max_length`."""
    num_eos_lost: int = 0
    """Completions that lost their end-of-sequence token to the cut."""
    num_equal_skipped: int = 0
    """Pairs whose completions have the same tokens, most often because both were cut."""
    num_eos_appended: int = 0
    """Completions of messages to which the chat template gives no end-of-sequence token."""
    num_double_bos: int = 0
    """Rows that began with two begin-of-sequence tokens; one was removed."""
    num_prompt_cut: int = 0
    """Rows whose prompt ends in tokens that the prompt followed by its completion does not have."""
    num_prompt_tokens_cut: int = 0
    """Tokens, summed over these rows."""
    num_context_turns: int = 0
    """Turns of users and tools inside completions, and turns there that are marked as not trained."""
    num_marked_turns: int = 0
    """Turns of the assistant in `messages` that are marked as not trained."""
    num_greetings: int = 0
    """Messages of the assistant in `messages` before anybody else has spoken: they answer nothing."""
    num_lost_thoughts: int = 0
    """Thoughts of trained answers that the chat template leaves out."""
    num_rendered_before: int = 0
    """Rows of text with control tokens beside the end-of-sequence token, as chats have that were rendered before."""
    num_control_kept: int = 0
    """Rows of messages with a control token of the tokenizer in their text."""
    num_control_stripped: int = 0
    """The same, where it was taken out."""
    first_control_token: str = ""
    """The first of them, as `path:line: token`."""
    num_plain: int = 0
    """Rows of plain text, though the tokenizer has a chat template."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """Key of messages that the chat template does not read: in how many rows it occurs."""


class SpecialTokens(NamedTuple):
    """The tokens that begin and end a sequence, looked up once: the tokenizer computes them at each access."""

    eos: str
    eos_id: int
    bos_id: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "SpecialTokens":
        """Returns those of `tokenizer`; refuses one without an end, with which a model never learns to stop."""
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"model.path: the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token. "
                "Set eos_token in its tokenizer_config.json."
            )
        return cls(tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id)


@dataclass(slots=True)
class Gate:
    """Which rows may pass, and those that were refused; the first of them is named once all rows have been seen."""

    max_length: int
    on_long_prompt: OnBadRow
    on_long_completion: OnLongCompletion
    on_extra_eos: OnBadRow
    special: SpecialTokens
    long_prompts: list[tuple[str, int]] = field(default_factory=list)
    long_completions: list[tuple[str, int]] = field(default_factory=list)
    extra_eos: list[tuple[str, int]] = field(default_factory=list)

    def admits(self, source: str, *, prompt_length: int, length: int, notes: TokenizeNotes) -> bool:
        """Returns whether a row of `length` tokens is kept (and cut, where it is longer than `max_length`)."""
        if prompt_length >= self.max_length:
            notes.num_long_prompt_skipped += 1
            if self.on_long_prompt is OnBadRow.refuse:
                self.long_prompts.append((source, prompt_length))
            return False
        if length > self.max_length and self.on_long_completion is not OnLongCompletion.truncate:
            notes.num_long_completion_skipped += 1
            if self.on_long_completion is OnLongCompletion.refuse:
                self.long_completions.append((source, length))
            return False
        return True

    def admits_eos(self, source: str, num_eos: Sequence[int], allowed: Sequence[int], notes: TokenizeNotes) -> bool:
        """Returns whether every part of a row has at most as many end-of-sequence tokens as messages."""
        extra = [count for count, limit in zip(num_eos, allowed, strict=True) if count > limit]
        if not extra:
            return True
        notes.num_extra_eos_skipped += 1
        if self.on_extra_eos is OnBadRow.refuse:
            self.extra_eos.append((source, extra[0]))
        return False

    def raise_refused(self) -> None:
        """Raises a `UserError` that names the first row that was refused, if there is one."""
        if self.extra_eos:
            source, count = self.extra_eos[0]
            raise UserError(
                f"{source}: a completion has the end-of-sequence token {self.special.eos} {count} times, more than it "
                f"has messages{_others(self.extra_eos)}. If it ends the turns of a chat that was rendered before, "
                "give the row as 'messages'; else remove it from the text, or set data.on_extra_eos=skip. If the text "
                "has none, the tokenizer or its chat template adds it twice."
            )
        if self.long_prompts:
            source, length = self.long_prompts[0]
            raise UserError(
                f"{source}: the prompt has {length} tokens and alone fills data.max_length={self.max_length}"
                f"{_others(self.long_prompts)}; the longest has {_longest(self.long_prompts)}. "
                "Raise data.max_length, shorten the prompts, or set data.on_long_prompt=skip."
            )
        if self.long_completions:
            source, length = self.long_completions[0]
            raise UserError(
                f"{source}: prompt and completion have {length} tokens, more than data.max_length={self.max_length}"
                f"{_others(self.long_completions)}; the longest has {_longest(self.long_completions)}. "
                "Raise data.max_length, or set data.on_long_completion=truncate or skip."
            )


def _others(rows: Sequence[tuple[str, int]]) -> str:
    if len(rows) == 1:
        return ""
    places = ", ".join(source for source, _ in rows[1:4]) + (", ..." if len(rows) > 4 else "")
    return f" (so in {len(rows)} rows, also {places})"


def _longest(rows: Sequence[tuple[str, int]]) -> int:
    return max(length for _, length in rows)


def with_eos(text: str, eos: str) -> str:
    """Returns `text` ending in the end-of-sequence token `eos`."""
    return text if text.endswith(eos) else text + eos


def encode(tokenizer: Any, texts: list[str], *, are_chats: bool) -> list[list[int]]:
    """Returns the ids of each text; a chat's template has already written its special tokens."""
    add_special_tokens = not are_chats
    if not tokenizer.is_fast:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return rows
    # This call sets the backend's truncation, padding and treatment of special tokens; `encode_batch_fast` then saves
    # the offsets, 40 % of the time.
    tokenizer("", verbose=False)
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
    return [encoding.ids for encoding in encodings]


def encode_parts(
    tokenizer: Any, eos: str, parts: Sequence[tuple[Any, ...]], records: Sequence[Record], notes: TokenizeNotes
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
    chats = []
    for (prompt, *completions), record in zip(parts, records, strict=True):
        for completion in ([], *completions):
            messages = prompt + completion
            trained = trained_turns(messages, len(prompt)) if completion else ()
            context = (record.tools, record.chat_template_kwargs, not completion, record.source)
            chats.append(Chat(messages, *context, trained))
    texts = render_chats(tokenizer, chats)
    notes.num_lost_thoughts += count_lost_thoughts(chats, texts)
    rendered = iter(texts)
    return encode_chat_groups(tokenizer, [list(islice(rendered, len(part))) for part in parts])


def split_prompt(sequences: list[list[int]], special: SpecialTokens, notes: TokenizeNotes) -> int:
    """Returns how many tokens the prompt, the first sequence, has in common with all others."""
    drop_double_bos(sequences, special, notes)
    prompt, *others = sequences
    length = min(common_prefix_length(prompt, ids) for ids in others)
    if length < len(prompt):
        notes.num_prompt_cut += 1
        notes.num_prompt_tokens_cut += len(prompt) - length
    return length


def encode_chat_groups(tokenizer: Any, groups: Sequence[list[str]]) -> list[list[list[int]]]:
    """Returns the ids of each rendered chat of each group; what a group's chats have in common is encoded once.

    A tokenizer cuts text at its special tokens before it does anything else, so ids on the two sides of one do not
    depend on each other, and all chats of a group may share the ids before their last common special token::

        <|im_start|>user ... <|im_end|>  |  <|im_start|>assistant Yes.<|im_end|>
                     shared              |  <|im_start|>assistant No.<|im_end|>

    The first group is encoded in both ways; should they differ, nothing is shared.
    """
    marks = _special_token_pattern(tokenizer)
    cuts = [_last_common_mark(texts, marks) if marks else 0 for texts in groups]
    if any(cuts):
        pieces = [
            piece
            for texts, cut in zip(groups, cuts, strict=True)
            for piece in (texts[0][:cut], *(t[cut:] for t in texts))
        ]
        encoded = iter(encode(tokenizer, pieces, are_chats=True))
        shared = [[head + next(encoded) for _ in texts] for texts, head in ((t, next(encoded)) for t in groups)]
        if shared[0] == encode(tokenizer, groups[0], are_chats=True):
            return shared
    whole = iter(encode(tokenizer, [text for texts in groups for text in texts], are_chats=True))
    return [[next(whole) for _ in texts] for texts in groups]


def _special_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Returns what matches the added tokens before which text may be cut, or None if there are none.

    A token that takes in the blanks on its left, or that overlaps the end of another one, is not among them.
    """
    tokens = list(tokenizer.added_tokens_decoder.values())
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    safe = [
        token.content
        for token in tokens
        if not (token.lstrip or token.single_word or token.normalized) and not _is_overlapped(token, tokens)
    ]
    return (
        re.compile("|".join(re.escape(content) for content in sorted(safe, key=len, reverse=True))) if safe else None
    )


def _is_overlapped(token: Any, others: Sequence[Any]) -> bool:
    """Returns whether another token can begin before `token` in a text and reach into it."""
    return any(
        token.content.startswith(other.content[start:]) or other.content.startswith(token.content, start)
        for other in others
        for start in range(1, len(other.content))
        if other.content[start] == token.content[0]
    )


def _last_common_mark(texts: Sequence[str], marks: re.Pattern[str]) -> int:
    first, *others = texts
    length = min(common_prefix_length(first, other) for other in others)
    return max((match.start() for match in marks.finditer(first, 0, length)), default=0)


def drop_double_bos(sequences: Sequence[list[int]], special: SpecialTokens, notes: TokenizeNotes) -> bool:
    """Removes, in place, one of two begin-of-sequence tokens at the beginning of one row's sequences.

    Returns:
        Whether there were two. Where the token is also the end-of-sequence token, two may be meant.
    """
    bos = special.bos_id
    if bos is None or bos == special.eos_id or sequences[-1][:2] != [bos, bos]:
        return False
    for ids in sequences:
        if ids[:2] == [bos, bos]:
            del ids[0]
    notes.num_double_bos += 1
    return True


def chunks(records: Sequence[AnyRecord], kind: Any) -> Iterator[list[AnyRecord]]:
    """Yields neighbours that have the same `kind(record)`: up to `CHUNK_ROWS` of them, fewer where they are long."""
    for _, run in groupby(records, key=kind):
        chunk: list[AnyRecord] = []
        size = 0
        for record in run:
            length = num_characters(record)
            if chunk and (len(chunk) == CHUNK_ROWS or size + length > MAX_CHARACTERS):
                yield chunk
                chunk, size = [], 0
            chunk.append(record)
            size += length
        yield chunk


class IdTable:
    """Rows of token ids, gathered chunk by chunk in Arrow's memory instead of Python's."""

    def __init__(self, columns: Sequence[str]) -> None:
        # Imported here: slow, and reading records, which imports this module for its notes, does without.
        import pyarrow as pa

        self.num_rows = 0
        self._schema = pa.schema([*((name, pa.list_(pa.int32())) for name in columns), ("source", pa.string())])
        self._columns: list[list[Any]] = [[] for _ in self._schema]
        self._batches: list[Any] = []

    def add(self, ids: Sequence[list[int]], source: str) -> None:
        """Adds one row: its id columns in order, and where it came from."""
        for column, value in zip(self._columns, (*ids, source), strict=True):
            column.append(value)
        self.num_rows += 1

    def flush(self) -> None:
        """Moves the rows added since the last call to Arrow."""
        import pyarrow as pa

        arrays = [pa.array(column, type) for column, type in zip(self._columns, self._schema.types, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._columns = [[] for _ in self._schema]

    def to_dataset(self) -> Any:
        """Returns the rows as a `datasets.Dataset`."""
        import pyarrow as pa
        from datasets import Dataset

        return Dataset(pa.Table.from_batches(self._batches, schema=self._schema))
