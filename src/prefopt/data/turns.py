"""Decides whether plain text becomes chats of one turn, since the model has a chat template (`data.as_chat=auto`).

The prompts were set apart before, as text: which are held out does not depend on the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.config.choices import AUTO
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import is_question, is_text, to_chat
from prefopt.data.control_tokens import ControlTokens
from prefopt.data.records import PreferencePair, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turns:
    """The decision for all rows of a data set: they are trained in one form.

    Attributes:
        are_made: Whether plain text becomes chats.
        num_obstacles: Rows of plain text that are no single question, because of which it does not.
    """

    are_made: bool = False
    num_obstacles: int = 0

    @classmethod
    def of(
        cls, splits: Sequence[Sequence[Record]], tokenizer: "PreTrainedTokenizerBase", config: DataConfig
    ) -> "Turns":
        """Looks at the rows of all splits."""
        texts = [records for records in splits if _has_text(records)]
        if config.as_chat != AUTO or not tokenizer.chat_template or not texts:
            return cls()
        control = ControlTokens(tokenizer)
        rows = (record for records in texts for record in records if is_text(record))
        num = sum(not _is_plain(record, control) for record in rows)
        return cls(are_made=not num, num_obstacles=num)

    def make(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns some rows in the form in which they are trained: those that change nothing are the same objects."""
        if not self.are_made:
            return records
        return [to_chat(record) if is_text(record) else record for record in records]


def _has_text(records: Sequence[Record]) -> bool:
    """Returns whether some rows are text. Without a mixture all rows have one form, so that the first one tells."""
    if not len(records) or is_text(records[0]):
        return len(records) > 0
    return bool(records[0].slice) and any(map(is_text, records))


def _is_plain(record: Record, control: ControlTokens) -> bool:
    return is_question(record) and not any(map(control.find, _texts(record)))


def _texts(record: Record) -> Iterator[str]:
    sides = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.completion,)
    yield from (text for text in (record.prompt, *sides) if isinstance(text, str))
