"""What the tokenizer and the chat template make of rows, for the checks that look at tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.data.anatomy import NO_LIMIT
from prefopt.data.audit.check import SPLITS
from prefopt.data.cache import digest_tokenizer
from prefopt.data.control_tokens import ControlTokens
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.records import PreferencePair, Record, message_fields
from prefopt.data.rendering import require_chat_template
from prefopt.data.tokenize import Tokenized, tokenize_pairs, tokenize_sft
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class RowTokens:
    """Tokens of some consecutive rows, without a limit on their length.

    Attributes:
        prompt: Tokens of each prompt, shape (rows,); -1 for a row that could not be tokenised.
        longest: Tokens of each prompt with its longer completion, shape (rows,); -1 likewise.
        control: Row -> the control token in its text.
        unknown: Rows with a token that stands for what the tokenizer cannot write.
        refused: Row -> why it cannot be tokenised.
        notes: Counts over all rows.
    """

    prompt: NDArray[np.int32]
    longest: NDArray[np.int32]
    control: dict[int, str] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    notes: TokenizeNotes = field(default_factory=TokenizeNotes)


@dataclass(frozen=True)
class Reader:
    """Tokenises rows as training does.

    Attributes:
        tokenizer: The policy's tokenizer.
        max_length: `data.max_length`.
        loss_on: Which tokens of demonstrations are trained.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    loss_on: LossOn

    def digest(self) -> str:
        """Returns what decides its results; for a tokenizer without a digest, something else each time."""
        known = digest_tokenizer(self.tokenizer) or uuid4().hex
        return f"{known} {self.max_length} {self.loss_on.value}"

    def require_template(self, records: Mapping[str, Sequence[Record]]) -> None:
        """Refuses a model that can render none of the rows of a split, as training does.

        Raises:
            UserError: Rows are messages, and the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            rows = (row for split in SPLITS for row in records.get(split, ()))
            chat = next((row for row in rows if message_fields(row)), None)
            if chat is not None:
                require_chat_template(self.tokenizer, chat.source)

    def read(self, records: Sequence[Record]) -> RowTokens:
        """Tokenises rows; one that cannot be tokenised spoils no other."""
        empty = np.full(len(records), -1, np.int32)
        found = RowTokens(empty, empty.copy())
        control = ControlTokens(self.tokenizer)
        found.control = {row: token for row, each in enumerate(records) if (token := control.find_in(each))}
        places = {record.source: row for row, record in enumerate(records)}
        try:
            tokenized = [self._tokenize(records)]
        except UserError:
            tokenized = []
            for row, record in enumerate(records):
                try:
                    tokenized.append(self._tokenize([record]))
                except UserError as error:
                    found.refused[row] = str(error)
        for part in tokenized:
            self._add(part, places, found)
        return found

    def find_rows(self, records: Sequence[Record], count: str) -> list[int]:
        """Returns the rows that a count of `TokenizeNotes` counts, by halves: tokenising tells only how many."""
        num_counted = self._count(records, count)
        if num_counted == 0:
            return []
        if len(records) == 1 or num_counted == len(records):
            return [*range(len(records))]
        middle = len(records) // 2
        first, second = (self.find_rows(part, count) for part in (records[:middle], records[middle:]))
        return [*first, *(middle + row for row in second)]

    def _count(self, records: Sequence[Record], count: str) -> int | None:
        """Returns how many rows are counted; None of several if one of them cannot be tokenised, and 0 of that one."""
        try:
            num_counted: int = getattr(self._tokenize(records).notes, count)
        except UserError:
            return None if len(records) > 1 else 0
        return num_counted

    def _tokenize(self, records: Sequence[Any]) -> Tokenized:
        limits: dict[str, Any] = {
            "max_length": NO_LIMIT,
            "on_long_prompt": OnBadRow.skip,
            "on_long_completion": OnLongCompletion.truncate,
            "on_extra_eos": OnBadRow.skip,
        }
        if isinstance(records[0], PreferencePair):
            return tokenize_pairs(records, self.tokenizer, **limits)
        return tokenize_sft(records, self.tokenizer, loss_on=self.loss_on, **limits)

    def _add(self, tokenized: Tokenized, places: dict[str, int], found: RowTokens) -> None:
        unknown = self.tokenizer.unk_token_id
        is_told = unknown not in (None, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        for row in tokenized.dataset:
            place = places[row["source"]]
            parts = [row[name] for name in ("chosen_ids", "rejected_ids") if name in row] or [row["input_ids"]]
            prompt = row.get("prompt_ids", [])
            found.prompt[place] = len(prompt) if prompt else _first_trained(row)
            found.longest[place] = len(prompt) + max(map(len, parts))
            if is_told and any(unknown in ids for ids in (prompt, *parts)):
                found.unknown.append(place)
        found.notes.add(tokenized.notes)


def _first_trained(row: dict[str, Any]) -> int:
    """Returns the number of tokens before the first that is trained; 0 if the row has no labels."""
    labels: list[int] = row.get("labels", [])
    return next((at for at, label in enumerate(labels) if label >= 0), 0)
