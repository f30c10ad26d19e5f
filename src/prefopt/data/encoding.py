"""Encoding of all rows to token ids: one begin and one end of sequence, and the limit on length."""

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prefopt.config.choices import OnLongCompletion
from prefopt.data.bad_rows import BadRows
from prefopt.data.counts import Counts
from prefopt.data.messages import trained_turns
from prefopt.data.prefixes import common_prefix_length
from prefopt.data.records import MAX_CHARACTERS, Record, num_characters
from prefopt.data.rendering import Chat, count_lost_thoughts, render_chats, require_chat_template
from prefopt.data.word_ids import find_word_ids
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000
"""Rows that are rendered and tokenized together."""

IGNORED_LABEL = -100
"""Label of a token that the loss ignores."""

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(kw_only=True)
class TokenizeNotes(Counts):
    """Counts of what happened during tokenization. Counts are rows unless the name says otherwise."""

    num_rows: int = 0
    """Rows of the input."""
    num_kept: int = 0
    """Rows of the result."""
    num_long_prompt_skipped: int = 0
    """Skipped rows whose prompt alone fills `max_length`."""
    num_long_completion_skipped: int = 0
    num_unreadable_skipped: int = 0
    """Rows that cannot be rendered or tokenised: the chat template refuses them, or the prompt has no token."""
    first_unreadable: str = ""
    """Place of the first of them, and what is wrong."""
    num_extra_eos_skipped: int = 0
    """Skipped rows with a completion that has more end-of-sequence tokens than messages."""
    num_truncated: int = 0
    """Kept rows with a completion that was cut at `max_length`."""
    num_eos_lost: int = 0
    """Completions whose end-of-sequence token was cut off."""
    num_equal_skipped: int = 0
    """Skipped pairs whose completions have the same tokens, most often because both were cut."""
    num_eos_appended: int = 0
    """Completions that got the end-of-sequence token that the chat template does not write."""
    num_double_bos: int = 0
    """Rows that began with two begin-of-sequence tokens; one was removed."""
    num_prompt_cut: int = 0
    """Rows whose last prompt tokens change once a completion follows; these tokens count as completion."""
    num_prompt_tokens_cut: int = 0
    """Prompt tokens lost in this way, summed over all rows."""
    num_context_turns: int = 0
    """Turns inside completions that are not trained: of users and tools, or marked as not trained."""
    num_marked_turns: int = 0
    """Turns of the assistant in `messages` that are marked as not trained."""
    num_greetings: int = 0
    """Messages of the assistant in `messages` before the first one of a user or tool; they are not trained."""
    num_lost_thoughts: int = 0
    """Thoughts of trained answers that the chat template leaves out."""
    num_rendered_before: int = 0
    """Rows of plain text with control tokens other than end of sequence: probably chats that were rendered before."""
    num_control_kept: int = 0
    """Rows of messages with a control token of the tokenizer in their text, which was kept."""
    num_control_stripped: int = 0
    """Rows of messages from whose text control tokens were removed."""
    first_control_token: str = ""
    """The first control token found, as `path:line: token`."""
    num_as_chat: int = 0
    """Rows of plain text that became chats of one turn, since the tokenizer has a chat template."""
    num_not_chat: int = 0
    """Rows of plain text that are no single question, because of which no row of text became a chat."""
    num_plain: int = 0
    """Rows of plain text, although the tokenizer has a chat template."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """For each key of messages that the chat template does not read: the number of rows that have it."""


class SpecialTokens(NamedTuple):
    """The begin- and end-of-sequence tokens of a tokenizer, which computes them anew at each access."""

    eos: str
    eos_id: int
    bos_id: int | None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "SpecialTokens":
        """Returns the special tokens of `tokenizer`.

        Raises:
            UserError: There is no end-of-sequence token, so the model would never learn to stop.
        """
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"model.path: the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token. "
                "Set eos_token in its tokenizer_config.json."
            )
        return cls(tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id)


@dataclass(frozen=True, slots=True)
class Gate:
    """Decides which rows are kept; `bad` gets the others."""

    max_length: int
    on_long_completion: OnLongCompletion
    special: SpecialTokens
    bad: BadRows

    def admits(self, source: str, *, prompt_length: int, length: int, notes: TokenizeNotes) -> bool:
        """Returns whether a row of `length` tokens is kept; the caller cuts a kept row at `max_length`."""
        if prompt_length >= self.max_length:
            notes.num_long_prompt_skipped += 1
            self.bad.add(
                source,
                f"the prompt has {prompt_length} tokens and alone fills data.max_length={self.max_length}",
                switch="on_long_prompt",
                remedy="Raise data.max_length, shorten the prompts, or set data.on_long_prompt=skip.",
                size=prompt_length,
            )
            return False
        if length > self.max_length and self.on_long_completion is not OnLongCompletion.truncate:
            notes.num_long_completion_skipped += 1
            self.bad.add(
                source,
                f"prompt and completion have {length} tokens, more than data.max_length={self.max_length}",
                switch="on_long_completion",
                remedy="Raise data.max_length, or set data.on_long_completion=truncate or skip.",
                size=length,
            )
            return False
        return True

    def admits_eos(self, source: str, num_eos: Sequence[int], allowed: Sequence[int], notes: TokenizeNotes) -> bool:
        """Returns whether no part of a row has more end-of-sequence tokens than allowed: one for each message."""
        extra = [count for count, limit in zip(num_eos, allowed, strict=True) if count > limit]
        if not extra:
            return True
        notes.num_extra_eos_skipped += 1
        self.bad.add(
            source,
            f"a completion has the end-of-sequence token {self.special.eos} {extra[0]} times, more than it has "
            "messages",
            switch="on_extra_eos",
            remedy="If it ends the turns of a chat that was rendered before, give the row as 'messages'; else remove "
            "it from the text, or set data.on_extra_eos=skip. If the text has none, the tokenizer or its template "
            "adds it twice.",
        )
        return False


def with_eos(text: str, eos: str) -> str:
    """Returns `text` ending in the end-of-sequence token `eos`."""
    return text if text.endswith(eos) else text + eos


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, are_chats: bool) -> list[list[int]]:
    """Returns the ids of each text; special tokens are added unless the texts are rendered chats, which have them."""
    add_special_tokens = not are_chats
    if not tokenizer.is_fast:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return rows
    # This call sets the backend's truncation, padding and treatment of special tokens. `encode_batch_fast` computes no
    # offsets, which takes 40 % less time.
    tokenizer("", verbose=False)
    words = None if add_special_tokens else find_word_ids(tokenizer)
    if words is not None:
        return words.encode(texts)
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
    return [encoding.ids for encoding in encodings]


def encode_parts(
    tokenizer: "PreTrainedTokenizerBase",
    eos: str,
    parts: Sequence[tuple[Any, ...]],
    records: Sequence[Record],
    notes: TokenizeNotes,
) -> list[list[list[int]]]:
    """Returns for each record a list of ids: of its prompt, then of the prompt followed by each completion."""
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
    """Returns how many leading tokens the prompt (the first sequence) shares with all other sequences."""
    drop_double_bos(sequences, special, notes)
    prompt, *others = sequences
    length = min(common_prefix_length(prompt, ids) for ids in others)
    if length < len(prompt):
        notes.num_prompt_cut += 1
        notes.num_prompt_tokens_cut += len(prompt) - length
    return length


def encode_chat_groups(tokenizer: "PreTrainedTokenizerBase", groups: Sequence[list[str]]) -> list[list[list[int]]]:
    """Returns the ids of each rendered chat of each group, encoding the common beginning of a group only once.

    A tokenizer splits text at its special tokens first, so the ids on the two sides of a special token do not depend
    on each other. All chats of a group can therefore share the ids before their last common special token::

        <|im_start|>user ... <|im_end|>  |  <|im_start|>assistant Yes.<|im_end|>
                     shared              |  <|im_start|>assistant No.<|im_end|>

    The first group is encoded in both ways; if the results differ, all groups are encoded without sharing.
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


def _special_token_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    """Returns a pattern of the added tokens before which text may be split, or None if there are none.

    It leaves out tokens that absorb blanks on their left and tokens that another token can overlap.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    return _pattern_of(
        tuple(
            (token.content, not (token.lstrip or token.single_word or token.normalized))
            for token in tokenizer.added_tokens_decoder.values()
        )
    )


@lru_cache(maxsize=16)
def _pattern_of(tokens: tuple[tuple[str, bool], ...]) -> re.Pattern[str] | None:
    """Returns a pattern of the tokens that are safe and that no other can overlap; each is (content, is safe)."""
    contents = [content for content, _ in tokens]
    ends = {content[start:] for content in contents for start in range(1, len(content))}
    safe = [content for content, is_safe in tokens if is_safe and not _is_overlapped(content, contents, ends)]
    longest_first = sorted(safe, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if safe else None


def _is_overlapped(token: str, others: Sequence[str], ends: Set[str]) -> bool:
    """Returns whether another token can begin before `token` in a text and reach into it.

    Args:
        token: A token.
        others: All tokens.
        ends: All ends of tokens, but no whole tokens.
    """
    begins = (token[:length] for length in range(1, len(token) + 1))
    return any(token in other[1:] for other in others) or not ends.isdisjoint(begins)


def _last_common_mark(texts: Sequence[str], marks: re.Pattern[str]) -> int:
    first, *others = texts
    length = min(common_prefix_length(first, other) for other in others)
    return max((match.start() for match in marks.finditer(first, 0, length)), default=0)


def drop_double_bos(sequences: Sequence[list[int]], special: SpecialTokens, notes: TokenizeNotes) -> bool:
    """Removes, in place, one of two leading begin-of-sequence tokens from the sequences of one row.

    Returns:
        Whether there were two. Always False if the token is also the end-of-sequence token: two may be intended.
    """
    bos = special.bos_id
    if bos is None or bos == special.eos_id or sequences[-1][:2] != [bos, bos]:
        return False
    for ids in sequences:
        if ids[:2] == [bos, bos]:
            del ids[0]
    notes.num_double_bos += 1
    return True


def chunks(records: Sequence[AnyRecord], kind: Callable[[AnyRecord], object]) -> Iterator[list[AnyRecord]]:
    """Yields lists of consecutive records with equal `kind(record)`: up to `CHUNK_ROWS`, fewer if they are long."""
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
