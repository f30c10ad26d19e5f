"""Control tokens written in the text of a chat or its tools: the model would read them as starts or ends of turns."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.config.choices import OnControlToken
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.plain_chats import PLAIN
from prefopt.data.records import Record, message_fields
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens for sequences, turns and roles, but not for thoughts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        self._first_letters = {token[0] for token in tokens}
        self._pattern = re.compile("|".join(map(re.escape, tokens)))

    def find(self, text: str) -> str | None:
        """Returns the first control token in `text`; None if there is none."""
        for letter in self._first_letters:  # ten times as fast as the pattern
            if letter in text:
                found = self._pattern.search(text)
                return found and found.group()
        return None

    def find_in(self, record: Record) -> str | None:
        """Returns the first control token in what a chat template renders of a record; None if there is none."""
        for value in _rendered(record).values():
            for item in value if isinstance(value, list) else [value]:
                is_plain = type(item) is dict and item.keys() == PLAIN and type(item["content"]) is str
                for text in (item["content"],) if is_plain else _texts([item]):
                    if found := self.find(text):
                        return found
        return None

    def strip(self, text: str) -> str:
        """Returns `text` without control tokens, including those that form when another is removed."""
        while self.find(text) is not None:
            text = self._pattern.sub("", text)
        return text


class Treated(NamedTuple):
    """Records whose control tokens were kept or stripped, and how many had one."""

    records: Sequence[Any]
    num_rows: int
    """Records with a control token."""
    first: str
    """The first control token, as `path:line: token`; empty if there is none."""


def treat_control_tokens(
    records: Sequence[Record],
    control: ControlTokens,
    setting: OnControlToken,
    bad: BadRows | None = None,
) -> Treated:
    """Finds control tokens in all fields that the chat template renders, and keeps, strips or refuses them.

    These fields are messages with their tool calls, tools, and `chat_template_kwargs`. Records of plain text are not
    searched: they may be chats that were rendered before.

    Args:
        records: Some records.
        control: The control tokens of the policy's tokenizer.
        setting: What happens to records with control tokens.
        bad: Gets those that are refused, of which the caller tells. None: they are refused here.

    Raises:
        UserError: Stripping makes two keys of an object equal; or, with `bad=None`, a record is refused.
    """
    told = BadRows("data.train", DataConfig(train="", on_control_token=setting)) if bad is None else bad
    first, num_rows = "", 0
    treated = list(records)
    for at, record in enumerate(records):
        token = control.find_in(record)
        if token is None:
            continue
        first = first or f"{record.source}: {token}"
        num_rows += 1
        if setting is OnControlToken.refuse:
            where = "stands in a message or a tool, where the model takes it for the beginning or the end of a turn"
            remedy = "Remove it, or set data.on_control_token=strip or keep."
            told.add(record.source, f"{token} {where}", switch="on_control_token", remedy=remedy)
        elif setting is OnControlToken.strip:
            treated[at] = _strip(record, control)
    if bad is None:
        require_usable(told)
    return Treated(treated, num_rows, first)


def _rendered(record: Record) -> dict[str, Any]:
    """Returns the fields of a record that a chat template renders; none for a record of text."""
    fields: dict[str, Any] = dict(message_fields(record))
    if fields and record.tools:
        fields["tools"] = record.tools
    if fields and record.chat_template_kwargs:
        fields["chat_template_kwargs"] = record.chat_template_kwargs
    return fields


def _texts(values: Iterable[object]) -> Iterator[str]:
    """Yields all strings within `values`, at every depth, keys included."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value
            yield from _texts(value.values())
        elif isinstance(value, list):
            yield from _texts(value)


def _strip(record: Record, control: ControlTokens) -> Record:
    def stripped(value: object) -> Any:
        if isinstance(value, str):
            return control.strip(value)
        if isinstance(value, list):
            return [*map(stripped, value)]
        if not isinstance(value, dict):
            return value
        made = {control.strip(key): stripped(item) for key, item in value.items()}
        if len(made) < len(value):
            raise UserError(
                f"{record.source}: two keys of one object are the same without their control tokens. Rename one."
            )
        return made

    return replace(record, **{name: stripped(value) for name, value in _rendered(record).items()})
