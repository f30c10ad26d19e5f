"""Renders chats to text with the tokenizer's chat template, and locates the assistant's turns in that text."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from prefopt.data.messages import UNTRAINED, Message
from prefopt.data.plain_chats import PLAIN, render_plain
from prefopt.data.prefixes import common_prefix_length
from prefopt.data.values import describe
from prefopt.process.errors import UserError
from prefopt.process.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

RENDER_LIMIT_S = 10.0
"""Time limit in seconds of one call of a chat template, to which `RENDER_SHARE_S` is added for each chat."""
RENDER_SHARE_S = 0.005

CONTENT_TAIL = 20
"""Number of last characters of a message that are searched for to find its end in the rendered text."""

THOUGHT_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "[THINK]": "[/THINK]",
    "<|channel>thought": "<channel|>",
}
"""Marks around a thought at the beginning of a message's content.

Templates may replace the marks by others, or leave the thought out of all turns but the last.
"""
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a message may have its thought, if it is not part of the content."""
EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")

BEGUN_MARK = re.compile(r"[<\[][^<>\[\]\s]*\Z")
"""Pattern of an incomplete mark, such as the beginning of `<|user|>` or `[INST]`, at the end of a text."""


class Chat(NamedTuple):
    """Messages to render, with everything else on which their rendering depends."""

    messages: list[Message]
    tools: list[Any] | None
    template_kwargs: dict[str, Any]
    add_generation_prompt: bool
    source: str
    trained: Sequence[int] = ()
    """Indices of the trained messages, ascending. The rendered text must contain their content."""


class Span(NamedTuple):
    """A range of characters or tokens; `end` is exclusive."""

    start: int
    end: int


class RefusedChatError(UserError):
    """A single chat cannot be rendered, while others may: `source` is its row's place, `found` what is wrong."""

    def __init__(self, source: str, found: str) -> None:
        super().__init__(f"{source}: {found}")
        self.source, self.found = source, found


class NoChatTemplateError(UserError):
    """Rows are messages, and a tokenizer has no chat template."""


def require_chat_template(tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Refuses a tokenizer without a chat template; `source` is the place of a row with messages."""
    if not tokenizer.chat_template:
        raise NoChatTemplateError(
            f"{source}: the rows are messages, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no "
            "chat template. Set model.chat_template to a Jinja file, or take an instruction-tuned model."
        )


def render_chats(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]) -> list[str]:
    """Returns the text of each chat.

    Chats that share tools and template arguments are rendered in one call, which sets up the template once.

    Raises:
        UserError: The template refuses a chat, or leaves out its tools or its content; it names the chat.
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
    for chat, text in zip(chats, texts, strict=True):
        _require_content_rendered(chat, text)
    return texts


def _split_thought(message: Message) -> tuple[str, str]:
    """Returns a message's thought and the rest of its content, both stripped, as templates strip them."""
    content: str = message.get("content", "")
    for begin, end in THOUGHT_MARKS.items():
        if end in content:
            thought, _, said = content.rpartition(end)
            return thought.strip().removeprefix(begin).strip(), said.strip()
    if message.keys() == PLAIN:
        return "", content.strip()
    beside = (value for key in THOUGHT_KEYS if isinstance(value := message.get(key), str))
    return next(beside, "").strip(), content.strip()


def count_lost_thoughts(chats: Iterable[Chat], texts: Iterable[str]) -> int:
    """Returns how many trained messages have a thought that is not in the rendered text."""
    num_lost = 0
    for chat, text in zip(chats, texts, strict=True):
        parts = [_split_thought(chat.messages[index]) for index in chat.trained]
        if not any(thought for thought, _ in parts):
            continue
        position = 0
        for thought, said in parts:
            num_lost += text.find(thought, position) < 0
            position = text.find(said, position)
    return num_lost


def _require_content_rendered(chat: Chat, text: str) -> None:
    """Refuses a template that omits the content of a trained message, or of all messages, as image templates do."""
    position = 0
    for index in chat.trained:
        _, content = _split_thought(chat.messages[index])
        found = text.find(content, position)
        if found < 0:
            _require_any_content(chat, text)
            raise RefusedChatError(
                chat.source,
                f"the chat template leaves out what the assistant says in message {index + 1} of "
                f"{len(chat.messages)} ({describe(content)}), so it would not be trained. Some templates take parts, "
                "or no words beside tool calls. Set another model.chat_template, or correct the row.",
            )
        position = found + len(content)
    if position == 0:  # no words of a trained message were found, since there are none
        _require_any_content(chat, text)


def _require_any_content(chat: Chat, text: str) -> None:
    said = [content for message in chat.messages if (content := message.get("content", "").strip())]
    if said and not any(content in text for content in said):
        raise UserError(
            f"{chat.source}: the chat template leaves out what the messages say (it may expect content as parts, for "
            "images). Set another model.chat_template."
        )


def _has_context(chat: Chat) -> bool:
    return bool(chat.tools or chat.template_kwargs)


def _render_alike(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]) -> list[str]:
    first = chats[0]
    try:
        with time_limit(RENDER_LIMIT_S + RENDER_SHARE_S * len(chats)):
            conversations = [_without_marks(chat.messages) for chat in chats]
            plain = None
            if not _has_context(first):
                plain = render_plain(tokenizer, conversations, add_generation_prompt=first.add_generation_prompt)
            texts: list[str] = plain or tokenizer.apply_chat_template(
                conversations,
                tools=first.tools,
                add_generation_prompt=first.add_generation_prompt,
                tokenize=False,
                **first.template_kwargs,
            )
    except Exception as error:  # a template is a program, and any of its operations may fail
        if len(chats) > 1:
            return [text for chat in chats for text in _render_alike(tokenizer, [chat])]
        calls = any("tool_calls" in message or message["role"] == "tool" for message in first.messages)
        hint = "It does not know tool calls: set" if calls else "Change the row's roles, or set"
        reason = error if isinstance(error, jinja2.TemplateError | TypeError) else f"{type(error).__name__}: {error}"
        raise RefusedChatError(
            first.source, f"the chat template refuses this row: {reason}. {hint} another model.chat_template."
        ) from error
    return texts


def _without_marks(messages: list[Message]) -> list[Message]:
    return [
        {key: value for key, value in message.items() if key != UNTRAINED} if UNTRAINED in message else message
        for message in messages
    ]


def _require_tools_rendered(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]) -> None:
    """Refuses a template that leaves tools out: the model would be trained to call tools that its prompt lacks."""
    chat = next((chat for chat in chats if chat.tools), None)
    if chat is None:
        return
    with_tools, without = _render_alike(tokenizer, [chat]), _render_alike(tokenizer, [chat._replace(tools=None)])
    if with_tools == without:
        raise UserError(
            f"{chat.source}: the row has tools, but the chat template leaves them out. "
            "Set a model.chat_template that renders tools, or remove the column 'tools'."
        )


def unread_keys(tokenizer: "PreTrainedTokenizerBase", chats: Iterable[tuple[str, Iterable[Message]]]) -> Counter[str]:
    """Returns the keys of messages that the chat template never mentions, each with the number of chats that have it.

    Args:
        tokenizer: A tokenizer with a chat template.
        chats: Place and messages of each chat.

    Raises:
        UserError: The template leaves out tool calls, so that turns would be trained without their calls.
    """
    template = tokenizer.chat_template
    source = "\n".join(template.values()) if isinstance(template, dict) else template
    mentioned = {*re.findall(r"\w+", source), "role", "content", UNTRAINED}
    unread: Counter[str] = Counter()
    for place, messages in chats:
        keys = {key for message in messages if not message.keys() <= mentioned for key in message.keys() - mentioned}
        if "tool_calls" in keys:
            raise UserError(
                f"{place}: the row has tool calls, but the chat template leaves them out. Set a model.chat_template "
                "that renders them, or remove these rows."
            )
        unread.update(keys)
    return unread


def render_turns(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]) -> tuple[list[str], list[list[Span]]]:
    """Returns the text of each chat, and for each trained turn its characters from the end of its header on.

    A turn is located by rendering the chat twice, before and after it. For `[user, assistant]` in a ChatML template::

        <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n   before the turn, with generation prompt
        <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nhello<|im_end|>\\n   after the turn

    Args:
        tokenizer: A tokenizer with a chat template.
        chats: Whole chats, without a generation prompt.

    Raises:
        UserError: A turn cannot be located, since the template renders earlier messages differently once more follow.
    """
    requests: list[Chat] = []
    for chat in chats:
        requests.append(chat)
        for turn in chat.trained:
            requests.append(chat._replace(messages=chat.messages[:turn], add_generation_prompt=True, trained=()))
            if turn + 1 < len(chat.messages):
                requests.append(chat._replace(messages=chat.messages[: turn + 1], trained=()))
    rendered = iter(render_chats(tokenizer, requests))
    texts: list[str] = []
    spans: list[list[Span]] = []
    for chat in chats:
        text = next(rendered)
        texts.append(text)
        spans.append([])
        for turn in chat.trained:
            before = next(rendered)
            after = next(rendered) if turn + 1 < len(chat.messages) else text
            spans[-1].append(_turn_span(tokenizer, chat, text, turn, before, after))
    return texts, spans


def _turn_span(
    tokenizer: "PreTrainedTokenizerBase", chat: Chat, text: str, turn: int, before: str, after: str
) -> Span:
    _, said = _split_thought(chat.messages[turn])
    start = common_prefix_length(before, text)
    is_told_apart = True
    if start < len(before):
        # The generation prompt may have more text than the turn's header, such as an empty thought. The text of the
        # earlier messages, however, must be the beginning of the chat's text.
        earlier = render_chats(tokenizer, [chat._replace(messages=chat.messages[:turn], trained=())])[0]
        is_told_apart = text.startswith(earlier)
        if begun := BEGUN_MARK.search(text, len(earlier), start):  # `<` is common to `<b>` and `<think>`
            start = begun.start()
    end = len(after)
    if not text.startswith(after):
        end = _end_of_turn(text, after, start, said[-CONTENT_TAIL:])
        is_told_apart &= said in text[start:end]
    if not is_told_apart or end <= start:
        raise UserError(
            f"{chat.source}: the chat template renders the messages before or in an assistant turn differently once "
            "more follow, so the turn's tokens cannot be told apart. Set another model.chat_template, or give rows "
            "whose 'prompt' is all but the last answer; for SFT, algorithm.loss_on=all trains every token."
        )
    return Span(start, end)


def _end_of_turn(text: str, after: str, start: int, said: str) -> int:
    """Returns the end, in `text`, of a turn that the template renders differently if it is the last of the chat.

    As the last turn it may have a different end (Phi-3, gpt-oss) or a different beginning (Qwen3, which renders the
    thought of the last turn only)::

        <|user|>hi<|end|><|assistant|>hello<|end|><|user|>...              text
        <|user|>hi<|end|><|assistant|>hello<|end|></s>                     after: the turn ends where the two differ
        <|user|>hi<|end|><|assistant|><think></think>hello<|end|>          after: the turn ends with the end of `after`

    Characters belong to the turn only if they are also in `after`, which contains no later message.

    Args:
        text: The rendered whole chat.
        after: The rendered chat up to and including the turn.
        start: Start of the turn in `text`.
        said: The last characters of the turn's content.
    """
    parted = common_prefix_length(after, text)
    if begun := BEGUN_MARK.search(text, start, parted):  # the common `<|` of `<|user|>` and `<|endoftext|>`
        is_after = said in text[start : begun.start()]
        parted = begun.start() if is_after else text.rfind(said, start, parted) + len(said)
    tails = (after[at:] for at in range(min(parted, start), len(after)))
    empty = EMPTY_THOUGHT.match(text, start)  # some templates write an empty thought where they leave one out
    begin = empty.end() if empty else start
    length = next((len(tail) for tail in tails if text.startswith(tail, begin)), 0)
    return max(parted, begin + length)


def locate_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], spans: Sequence[Sequence[Span]]
) -> Iterator[tuple[list[int], list[Span]]]:
    """Yields the ids of each rendered chat, and its spans of characters converted to spans of tokens.

    A token that crosses the start of a span belongs to it; one that crosses its end does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "model.path: this tokenizer cannot tell which characters a token covers, so that the assistant's turns "
            "cannot be told from the others'. Give rows whose 'prompt' is all but the last answer; for SFT, "
            "algorithm.loss_on=all trains every token."
        )
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for index, (text, characters) in enumerate(zip(texts, spans, strict=True)):
        ids = batch["input_ids"][index]
        bounds = [[_token_at(batch, index, position, len(text), len(ids)) for position in span] for span in characters]
        yield ids, [Span(start, end) for start, end in bounds]


def _token_at(batch: "BatchEncoding", index: int, position: int, num_characters: int, num_tokens: int) -> int:
    """Returns the index of the first token at or after character `position`; `num_tokens` if there is none."""
    while position < num_characters:
        token: int | None = batch.char_to_token(index, position)
        if token is not None:
            return token
        position += 1
    return num_tokens
