"""Prompts, answers and pairs as text, for judges and for people."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.data.messages import Content, trained_turns
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.evaluation.judges.judge import LabelledPair

logger = logging.getLogger(__name__)
MOST_TRAINED = 20_000
"""Training rows from which judges and tasks learn; more would not fit into memory as text."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A held-out prompt that all contestants answer, as text.

    Attributes:
        source: Location of its example, `file:line`.
        prompt: The prompt.
        chosen: The answer in the data; None if there is none.
        rejected: The worse answer in the data; None if there is none.
        slice: Name of the part of a mixture that it is from; empty if there are no parts.
        tag: Value of `data.tag`; empty without one.
    """

    source: str
    prompt: str
    chosen: str | None
    slice: str = ""
    tag: str = ""
    rejected: str | None = None

    @classmethod
    def of(cls, record: Record) -> "Asked":
        """Returns the prompt of a record, with the answer to it."""
        rejected = _plain(record.rejected) if isinstance(record, PreferencePair) else None
        return cls(record.source, *_texts(record), record.slice, record.tag, rejected)


def labelled_pairs(records: Sequence[Record] | None) -> list[LabelledPair]:
    """Returns the preference pairs among records, as text."""
    pairs = (record for record in records or () if isinstance(record, PreferencePair))
    return [LabelledPair(_plain(pair.prompt), to_text(pair.chosen), to_text(pair.rejected)) for pair in pairs]


def read_trained(records: Sequence[Record], seed: int) -> list[LabelledPair]:
    """Returns training records as text, from which judges and tasks learn: of many, a sample.

    Args:
        records: The training records; demonstrations become pairs without a rejected answer.
        seed: Of the sample.
    """
    rows = np.arange(len(records))
    if len(records) > MOST_TRAINED:
        rows = np.sort(np.random.default_rng(seed).choice(len(records), MOST_TRAINED, replace=False))
        logger.info("evaluation: judges and tasks learn from a sample of %d of %d rows", MOST_TRAINED, len(records))
    found = []
    for row in rows.tolist():
        record = records[row]
        if isinstance(record, PreferencePair):
            found += labelled_pairs([record])
        else:
            prompt, answer = _texts(record)
            found += [LabelledPair(prompt, answer, "")] if answer else []
    return found


def _texts(record: PreferencePair | SFTExample) -> tuple[str, str | None]:
    if isinstance(record, PreferencePair):
        return _plain(record.prompt), _plain(record.chosen)
    if record.text is not None:
        return record.text, None
    if record.messages is not None:
        first = trained_turns(record.messages)[0]
        return _plain(record.messages[:first]), _plain(record.messages[first : first + 1])
    return _plain(record.prompt or ""), _plain(record.completion or "")


def _plain(content: Content) -> str:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return str(content[0].get("content") or content[0].get("tool_calls") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in content)


def to_text(content: object) -> str:
    """Returns a prompt or an answer as text: of messages, what they say, one after another."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        return ""
    said = [message.get("content") for message in content if isinstance(message, dict)]
    return "\n".join(text for text in said if isinstance(text, str)).strip()
