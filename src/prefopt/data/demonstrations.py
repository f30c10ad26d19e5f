"""Token ids of demonstrations (texts, prompts with completions, conversations) and the spans that are answers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefopt.config.choices import LossOn
from prefopt.data.control_tokens import ControlTokens
from prefopt.data.encoding import (
    SpecialTokens,
    TokenizeNotes,
    drop_double_bos,
    encode,
    encode_parts,
    split_prompt,
    with_eos,
)
from prefopt.data.messages import UNTRAINED, Message, is_trained, trained_turns
from prefopt.data.records import SFTExample
from prefopt.data.rendering import (
    Chat,
    Span,
    count_lost_thoughts,
    locate_tokens,
    render_chats,
    render_turns,
    require_chat_template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExampleIds(NamedTuple):
    """Token ids of a demonstration, and which of them are answers."""

    ids: list[int]
    spans: list[Span]
    """Ranges of `ids` that the assistant wrote; for plain text, all of it."""
    num_ends: list[int]
    """Most end-of-sequence tokens that each span may have: one for each message in it."""


def _form(example: SFTExample, loss_on: LossOn) -> str:
    """Returns the key in `ENCODERS` of the function that encodes an example."""
    if example.text is not None:
        return "text"
    if example.messages is not None:
        return "turns" if loss_on is LossOn.completions else "chat"
    is_whole = isinstance(example.completion, str) or all(map(is_trained, example.completion or ()))
    return "parts" if is_whole or loss_on is LossOn.all else "turns"


def encode_examples(
    tokenizer: "PreTrainedTokenizerBase",
    special: SpecialTokens,
    examples: Sequence[SFTExample],
    loss_on: LossOn,
    notes: TokenizeNotes,
) -> list[ExampleIds]:
    """Returns the ids of each example, in order; the examples may have different forms."""
    forms = [_form(example, loss_on) for example in examples]
    encoded: dict[str, Iterator[ExampleIds]] = {}
    for form in set(forms):
        alike = [example for example, its_form in zip(examples, forms, strict=True) if its_form == form]
        encoded[form] = ENCODERS[form](tokenizer, special, alike, notes)
    return [next(encoded[form]) for form in forms]


def _encode_whole_chats(
    tokenizer: "PreTrainedTokenizerBase", special: SpecialTokens, examples: Sequence[SFTExample], notes: TokenizeNotes
) -> Iterator[ExampleIds]:
    require_chat_template(tokenizer, examples[0].source)
    chats = [_chat(example, example.messages or []) for example in examples]
    texts = render_chats(tokenizer, chats)
    notes.num_lost_thoughts += count_lost_thoughts(chats, texts)
    for chat, ids in zip(chats, encode(tokenizer, texts, are_chats=True), strict=True):
        drop_double_bos([ids], special, notes)
        yield ExampleIds(ids, [Span(0, len(ids))], [len(chat.messages) + 1])  # the template may add a system message


def _encode_prompts_and_completions(
    tokenizer: "PreTrainedTokenizerBase", special: SpecialTokens, examples: Sequence[SFTExample], notes: TokenizeNotes
) -> Iterator[ExampleIds]:
    parts = [(example.prompt, example.completion) for example in examples]
    encoded = encode_parts(tokenizer, special.eos, parts, examples, notes)
    for (_, completion), sequences in zip(parts, encoded, strict=True):
        start = split_prompt(sequences, special, notes)
        num_ends = len(completion) if isinstance(completion, list) else 1
        yield ExampleIds(sequences[1], [Span(start, len(sequences[1]))], [num_ends])


def _encode_texts(
    tokenizer: "PreTrainedTokenizerBase", special: SpecialTokens, examples: Sequence[SFTExample], notes: TokenizeNotes
) -> Iterator[ExampleIds]:
    texts = [with_eos(example.text or "", special.eos) for example in examples]
    control = ControlTokens(tokenizer)
    for text, ids in zip(texts, encode(tokenizer, texts, are_chats=False), strict=True):
        drop_double_bos([ids], special, notes)
        # Some tokenizers (OPT) use one token as begin- and end-of-sequence token.
        num_ends = 1 + (ids[:1] == [special.bos_id] == [special.eos_id])
        if control.find(text.replace(special.eos, "")):
            notes.num_rendered_before += 1
            num_ends = ids.count(special.eos_id)  # a rendered chat: every end-of-sequence token may end a turn
        yield ExampleIds(ids, [Span(0, len(ids))], [num_ends])


def _encode_turns(
    tokenizer: "PreTrainedTokenizerBase", special: SpecialTokens, examples: Sequence[SFTExample], notes: TokenizeNotes
) -> Iterator[ExampleIds]:
    require_chat_template(tokenizer, examples[0].source)
    chats = []
    for example in examples:
        if example.messages is not None:
            chats.append(_chat(example, example.messages))
            num_marked = sum(UNTRAINED in message for message in example.messages)
            num_said = sum(message["role"] == "assistant" for message in example.messages)
            notes.num_marked_turns += num_marked
            notes.num_greetings += num_said - num_marked - len(chats[-1].trained)
        else:
            chats.append(
                _chat(example, [*(example.prompt or ()), *(example.completion or ())], len(example.prompt or ()))
            )
            notes.num_context_turns += len(example.completion or ()) - len(chats[-1].trained)
    texts, turns = render_turns(tokenizer, chats)
    notes.num_lost_thoughts += count_lost_thoughts(chats, texts)
    for ids, spans in locate_tokens(tokenizer, texts, turns):
        if drop_double_bos([ids], special, notes):
            spans = [Span(span.start - 1, span.end - 1) for span in spans]
        yield ExampleIds(ids, spans, [1] * len(spans))


ENCODERS = {
    "text": _encode_texts,
    "chat": _encode_whole_chats,
    "turns": _encode_turns,
    "parts": _encode_prompts_and_completions,
}


def _chat(example: SFTExample, messages: list[Message], num_prompt: int | None = None) -> Chat:
    trained = trained_turns(messages, num_prompt)
    return Chat(messages, example.tools, example.chat_template_kwargs, False, example.source, trained)
