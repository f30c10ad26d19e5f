"""Valid records from which nothing can be learned (empty completions, identical pairs), and exact duplicates."""

import hashlib
import json
from collections.abc import Sequence

from prefopt.config.choices import OnBadRow
from prefopt.data.messages import Content, Message
from prefopt.data.reading import ReadNotes
from prefopt.data.records import PreferencePair, Record
from prefopt.process.errors import UserError


def drop_defects(
    records: Sequence[Record], *, on_empty: OnBadRow, on_identical: OnBadRow, notes: ReadNotes
) -> list[Record]:
    """Returns the records without empty and identical ones, and counts these and the duplicates in `notes`.

    Duplicates are kept. A pair with two empty completions counts as empty, not as identical.

    Raises:
        UserError: Some record is empty or identical and its setting is `refuse`.
    """
    empty = [record for record in records if is_empty(record)]
    _refuse(empty, on_empty, "has an empty completion", "data.on_empty")
    kept = [record for record in records if not is_empty(record)]
    identical = [record for record in kept if is_identical(record)]
    _refuse(identical, on_identical, "has 'rejected' equal to 'chosen'", "data.on_identical")
    if identical:
        kept = [record for record in kept if not is_identical(record)]
    notes.num_empty_skipped = len(empty)
    notes.num_identical_skipped = len(identical)
    notes.num_duplicates = len(kept) - len({record_key(record) for record in kept})
    return kept


def _refuse(bad: Sequence[Record], setting: OnBadRow, what: str, name: str) -> None:
    if not bad or setting is OnBadRow.skip:
        return
    others = f", as {len(bad) - 1} more do ({_places(bad[1:4])})" if len(bad) > 1 else ""
    raise UserError(f"{bad[0].source}: this row {what}{others}. Drop {len(bad)} row(s), or set {name}=skip.")


def _places(records: Sequence[Record]) -> str:
    return ", ".join(record.source for record in records) + (", ..." if len(records) == 3 else "")


def is_empty(record: Record) -> bool:
    """Returns whether a completion, or any of its assistant messages, has neither text nor a tool call."""
    if isinstance(record, PreferencePair):
        return _is_blank(record.chosen) or _is_blank(record.rejected)
    for content in (record.text, record.completion, record.messages):
        if content is not None:
            return _is_blank(content)
    raise AssertionError("a demonstration has text, a completion or messages")


def is_identical(record: Record) -> bool:
    """Returns whether chosen and rejected are equal up to leading and trailing whitespace."""
    return isinstance(record, PreferencePair) and _stripped(record.chosen) == _stripped(record.rejected)


def record_key(record: Record) -> bytes:
    """Returns a digest (SHA-256) of all fields but `source`: equal records have equal digests."""
    fields = [getattr(record, name) for name in record.__slots__ if name != "source"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).digest()


def _is_blank(content: Content) -> bool:
    if isinstance(content, str):
        return not content.strip()
    return any(
        message["role"] == "assistant" and not message.get("content", "").strip() and not message.get("tool_calls")
        for message in content
    )


def _stripped(content: Content) -> str | list[Message]:
    if isinstance(content, str):
        return content.strip()
    return [{**message, "content": message.get("content", "").strip()} for message in content]
