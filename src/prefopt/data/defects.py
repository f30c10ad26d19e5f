"""Valid records from which nothing can be learned (empty completions, identical pairs), and exact duplicates."""

import hashlib
import json
from collections.abc import Sequence

from prefopt.data.bad_rows import BadRows
from prefopt.data.messages import Content, Message
from prefopt.data.reading import ReadNotes
from prefopt.data.records import PreferencePair, Record


def drop_defects(records: Sequence[Record], bad: BadRows, notes: ReadNotes) -> list[Record]:
    """Returns the records without empty and identical ones, and counts these and the duplicates in `notes`.

    Duplicates are kept. A pair with two empty completions counts as empty, not as identical.

    Args:
        records: The records of one split.
        bad: Gets the empty and identical ones.
        notes: The counts of the split.
    """
    kept = []
    for record in records:
        if is_empty(record):
            bad.add(record.source, "this row has an empty completion", switch="on_empty", remedy=_remedy("on_empty"))
        elif is_identical(record):
            equal = "this row has 'rejected' equal to 'chosen'"
            bad.add(record.source, equal, switch="on_identical", remedy=_remedy("on_identical"))
        else:
            kept.append(record)
    notes.num_empty_skipped = bad.num_skipped("on_empty")
    notes.num_identical_skipped = bad.num_skipped("on_identical")
    notes.num_duplicates = len(kept) - len({record_key(record) for record in kept})
    return kept


def _remedy(switch: str) -> str:
    return f"Drop such rows, or set data.{switch}=skip."


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
