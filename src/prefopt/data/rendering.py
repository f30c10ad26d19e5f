"""Chats rendered to text by the tokenizer's chat template, and where the assistant's turns lie in that text."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2

from prefopt.data.messages import Message
from prefopt.errors import UserError


class Chat(NamedTuple):
    """Messages to render, with all that their rendering depends on."""

    messages: list[Message]
    tools: list[Any] | None
    template_kwargs: dict[str, Any]
    add_generation_prompt: bool
    source: str


class Span(NamedTuple):
    """Half-open range of characters or tokens."""

    start: int
    end: int


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Returns how many leading items (tokens or characters) two sequences share."""
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def require_chat_template(tokenizer: Any, source: str) -> None:
    """Refuses a tokenizer that cannot render the messages of `source`."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{source}: the rows are messages, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no "
            "chat template. Set model.chat_template to a Jinja file, or take an instruction-tuned model."
        )


def render_chats(tokenizer: Any, chats: Sequence[Chat]) -> list[str]:
    """Returns the text of each chat.

    Chats that share tools and template arguments are rendered in one call, which sets up the template once.

    Raises:
        UserError: The template refuses a chat, or leaves its tools out; the chat is named.
    """
    _require_tools_rendered(tokenizer, chats)
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, chat in enumerate(chats):
        context = json.dumps([chat.tools, chat.template_kwargs], default=repr) if _has_context(chat) else ""
        groups[chat.add_generation_prompt, context].append(index)
    texts = [""] * len(chats)
    for indices in groups.values():
        for index, text in zip(indices, _render_alike(tokenizer, [chats[index] for index in indices]), strict=True):
            texts[index] = text
    return texts


def _has_context(chat: Chat) -> bool:
    return bool(chat.tools or chat.template_kwargs)


def _render_alike(tokenizer: Any, chats: Sequence[Chat]) -> list[str]:
    first = chats[0]
    try:
        texts: list[str] = tokenizer.apply_chat_template(
            [chat.messages for chat in chats],
            tools=first.tools,
            add_generation_prompt=first.add_generation_prompt,
            tokenize=False,
            **first.template_kwargs,
        )
    except (jinja2.TemplateError, TypeError) as error:
        if len(chats) > 1:
            return [text for chat in chats for text in _render_alike(tokenizer, [chat])]
        calls = any("tool_calls" in message or message["role"] == "tool" for message in first.messages)
        hint = "It does not know tool calls: set" if calls else "Change the row's roles, or set"
        raise UserError(
            f"{first.source}: the chat template refuses this row: {error}. {hint} another model.chat_template."
        ) from error
    return texts


def _require_tools_rendered(tokenizer: Any, chats: Sequence[Chat]) -> None:
    """Refuses a template that leaves tools out: the model would be trained on calls to what it was never told of."""
    chat = next((chat for chat in chats if chat.tools), None)
    if chat is None:
        return
    with_tools, without = _render_alike(tokenizer, [chat]), _render_alike(tokenizer, [chat._replace(tools=None)])
    if with_tools == without:
        raise UserError(
            f"{chat.source}: the row has tools, but the chat template leaves them out. "
            "Set a model.chat_template that renders tools, or remove the column 'tools'."
        )


def render_turns(tokenizer: Any, chats: Sequence[Chat]) -> tuple[list[str], list[list[Span]]]:
    """Returns the text of each chat, and the characters of its assistant turns from header's end to end of turn.

    Turns are found by rendering the chat up to them. For `[user, assistant]` in a ChatML template::

        <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n   the chat before the turn, with generation prompt
        <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nhello<|im_end|>\\n   the chat up to and with the turn

    An assistant message that opens the chat answers nothing and is not among the turns.

    Raises:
        UserError: The template renders the beginning of a chat differently when more messages follow.
    """
    requests: list[Chat] = []
    for chat in chats:
        requests.append(chat)
        for turn in _turns(chat):
            requests.append(chat._replace(messages=chat.messages[:turn], add_generation_prompt=True))
            requests.append(chat._replace(messages=chat.messages[: turn + 1]))
    rendered = iter(render_chats(tokenizer, requests))
    texts, spans = [], []
    for chat in chats:
        text = next(rendered)
        texts.append(text)
        spans.append(
            [_turn_span(tokenizer, chat, text, turn, next(rendered), next(rendered)) for turn in _turns(chat)]
        )
    return texts, spans


def _turns(chat: Chat) -> list[int]:
    return [index for index, message in enumerate(chat.messages) if index and message["role"] == "assistant"]


def _turn_span(tokenizer: Any, chat: Chat, text: str, turn: int, before: str, after: str) -> Span:
    start = common_prefix_length(before, text)
    is_prefix = start == len(before)
    if not is_prefix:
        # The generation prompt may hold more than the turn's header (an empty thought, say); the messages may not.
        is_prefix = text.startswith(render_chats(tokenizer, [chat._replace(messages=chat.messages[:turn])])[0])
    end = len(after) if text.startswith(after) else _end_at_eos(tokenizer, text, after, start)
    if not is_prefix or end is None or end <= start:
        raise UserError(
            f"{chat.source}: the chat template renders the messages before or in an assistant turn differently once "
            "more follow, so the turn's tokens cannot be told apart. Set algorithm.loss_on=all, or another "
            "model.chat_template, or give the rows as 'prompt' and 'completion'."
        )
    return Span(start, end)


def _end_at_eos(tokenizer: Any, text: str, after: str, start: int) -> int | None:
    """Returns the end of a turn that the template renders differently when it is the last one, as Qwen3 does."""
    eos = tokenizer.eos_token
    found = text.find(eos, start)
    return found + len(eos) if found >= 0 and after.rstrip().endswith(eos) else None


def locate_tokens(
    tokenizer: Any, texts: list[str], spans: Sequence[Sequence[Span]]
) -> Iterator[tuple[list[int], list[Span]]]:
    """Yields the ids of each rendered chat and the tokens that its spans of characters cover.

    A token that reaches over a span's start belongs to it; one that reaches over its end does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "algorithm.loss_on=completions: this tokenizer cannot tell which characters a token covers. "
            "Set algorithm.loss_on=all, or give the rows as 'prompt' and 'completion'."
        )
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for index, (text, characters) in enumerate(zip(texts, spans, strict=True)):
        ids = batch["input_ids"][index]
        bounds = [[_token_at(batch, index, position, len(text), len(ids)) for position in span] for span in characters]
        yield ids, [Span(start, end) for start, end in bounds]


def _token_at(batch: Any, index: int, position: int, num_characters: int, num_tokens: int) -> int:
    """Returns the token of the first character at or after `position` that has one."""
    while position < num_characters:
        token: int | None = batch.char_to_token(index, position)
        if token is not None:
            return token
        position += 1
    return num_tokens
