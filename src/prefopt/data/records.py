"""Records: the checked form of rows of training data."""

import json
from dataclasses import dataclass, field
from typing import Any

from prefopt.config.algorithms import Kind
from prefopt.data.messages import Content, Message

MAX_CHARACTERS = 4_000_000
"""Longest row: about a million tokens. A tokenizer takes some 100 bytes of memory for each character."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with a better and a worse completion: all three are text, or all three are lists of messages."""

    prompt: Content
    chosen: Content
    rejected: Content
    tools: list[Any] | None
    chat_template_kwargs: dict[str, Any]
    source: str
    """Place of the row: `path:line`, or `path:row N` for files without lines. No two rows have the same."""
    margin: float | None = None
    """How much better the chosen answer is, by the scores of the file; None if it has none. Nothing is trained on it,
    so it is no part of `record_key` and of the cache of token ids."""
    slice: str = ""
    """Name of the part of a mixture that the row comes from; empty if the data set has no parts."""
    tag: str = ""
    """Value of the column `data.tag`; of a pair of two rows, that of the later one."""


NOT_CONTENT = frozenset(("source", "margin", "slice", "tag"))
"""Fields of records that say something about a row, and are nothing that a model could see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTExample:
    """One demonstration: either `text`, or `prompt` and `completion`, or `messages`; the others are None."""

    text: str | None = None
    prompt: Content | None = None
    completion: Content | None = None
    messages: list[Message] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    source: str
    slice: str = ""
    """Name of the part of a mixture that the row comes from; empty if the data set has no parts."""
    tag: str = ""
    """Value of the column `data.tag`."""


Record = PreferencePair | SFTExample
RECORDS: dict[Kind, type[Record]] = {"preference": PreferencePair, "sft": SFTExample}


def num_characters(record: Record) -> int:
    """Returns how many characters a record has, its tools included."""
    if isinstance(record, PreferencePair):
        contents: tuple[Content | None, ...] = (record.prompt, record.chosen, record.rejected)
    else:
        contents = (record.text, record.prompt, record.completion, record.messages)
    length = len(json.dumps(record.tools, default=str)) if record.tools else 0
    for content in contents:
        if isinstance(content, str):
            length += len(content)
        elif content is not None:
            for message in content:
                is_plain = len(message) == 2 and "content" in message
                length += len(message["content"] if is_plain else json.dumps(message, default=str))
    return length


def message_fields(record: Record) -> dict[str, list[Message]]:
    """Returns the fields of a record that hold messages, by name; {} for a record of text."""
    is_pair = isinstance(record, PreferencePair)
    names = ("prompt", "chosen", "rejected") if is_pair else ("prompt", "completion", "messages")
    return {name: value for name in names if isinstance(value := getattr(record, name), list)}
