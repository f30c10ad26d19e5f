"""Control tokens that somebody has written into a message: to the model they begin and end turns."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from prefopt.choices import OnControlToken
from prefopt.data.messages import Message
from prefopt.data.records import Record, message_fields
from prefopt.errors import UserError


class ControlTokens:
    """The control tokens of a tokenizer: begin and end of sequence, of turns, of roles; a thought's marks are none."""

    def __init__(self, tokenizer: Any) -> None:
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        self._first_letters = {token[0] for token in tokens}
        self._pattern = re.compile("|".join(map(re.escape, tokens)))

    def find(self, text: str) -> str | None:
        """Returns the first control token in `text`."""
        if not any(letter in text for letter in self._first_letters):  # ten times as fast as the pattern
            return None
        found = self._pattern.search(text)
        return found and found.group()

    def strip(self, text: str) -> str:
        """Returns `text` without control tokens, also without those that come about when others are gone."""
        while self.find(text) is not None:
            text = self._pattern.sub("", text)
        return text


class Treated(NamedTuple):
    """Records after their control tokens were kept or stripped, and what was found."""

    records: list[Any]
    num_rows: int
    first: str
    """`path:line: token`; empty if there is none."""


def treat_control_tokens(records: Sequence[Record], tokenizer: Any, setting: OnControlToken) -> Treated:
    """Looks for control tokens in the text of messages. Plain text is left alone: it may be a chat rendered before.

    Raises:
        UserError: There is one, and `setting` is `refuse`.
    """
    control = ControlTokens(tokenizer)
    treated = list(records)
    found: list[str] = []
    for index, record in enumerate(records):
        token = next(filter(None, map(control.find, _texts(record))), None)
        if token is not None:
            found.append(f"{record.source}: {token}")
            if setting is OnControlToken.strip:
                treated[index] = _strip(record, control)
    if found and setting is OnControlToken.refuse:
        raise UserError(
            f"{found[0]} stands in a message, where the model takes it for the beginning or the end of a turn "
            f"({len(found)} such row(s)). Remove it, or set data.on_control_token=strip or keep."
        )
    return Treated(treated, len(found), found[0] if found else "")


def _texts(record: Record) -> Iterator[str]:
    for messages in message_fields(record).values():
        for message in messages:
            yield from (value for value in message.values() if isinstance(value, str))


def _strip(record: Record, control: ControlTokens) -> Record:
    def stripped(message: Message) -> Message:
        return {key: control.strip(value) if isinstance(value, str) else value for key, value in message.items()}

    changed: dict[str, Any] = {name: [*map(stripped, value)] for name, value in message_fields(record).items()}
    return replace(record, **changed)
