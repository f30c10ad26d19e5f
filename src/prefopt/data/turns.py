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
from prefopt.data.table import Table

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
        """Looks at the rows of all splits; all rows of a split are text, or none is."""
        texts = [records for records in splits if len(records) and is_text(records[0])]
        if config.as_chat != AUTO or not tokenizer.chat_template or not texts:
            return cls()
        control = ControlTokens(tokenizer)
        num = sum(not _is_plain(record, control) for records in texts for record in records)
        return cls(are_made=not num, num_obstacles=num)

    def make(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the rows in the form in which they are trained."""
        if not self.are_made or not len(records) or not is_text(records[0]):
            return records
        return Table.of(map(to_chat, records))


def _is_plain(record: Record, control: ControlTokens) -> bool:
    return is_question(record) and not any(map(control.find, _texts(record)))


def _texts(record: Record) -> Iterator[str]:
    sides = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.completion,)
    yield from (text for text in (record.prompt, *sides) if isinstance(text, str))
