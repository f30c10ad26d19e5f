"""Valid records from which nothing can be learned (empty completions, identical pairs), and exact duplicates."""

import hashlib
import json
import marshal
from collections.abc import Sequence

import numpy as np

from prefopt.config.choices import OnBadRow
from prefopt.data.messages import Content, Message
from prefopt.data.reading import ReadNotes
from prefopt.data.records import NOT_CONTENT, PreferencePair, Record
from prefopt.data.table import Table
from prefopt.process.errors import UserError


def drop_defects(
    records: Sequence[Record], *, on_empty: OnBadRow, on_identical: OnBadRow, notes: ReadNotes
) -> Table[Record]:
    """Returns the records without empty and identical ones, and counts these and the duplicates in `notes`.

    Duplicates are kept. A pair with two empty completions counts as empty, not as identical.

    Raises:
        UserError: Some record is empty or identical and its setting is `refuse`.
    """
    table = Table.of(records)
    empty: list[int] = []
    identical: list[int] = []
    keys: set[bytes] = set()
    for row, record in enumerate(table):
        if is_empty(record):
            empty.append(row)
        elif is_identical(record):
            identical.append(row)
        else:
            keys.add(record_key(record))
    _refuse(table.select(empty), on_empty, "has an empty completion", "data.on_empty")
    _refuse(table.select(identical), on_identical, "has 'rejected' equal to 'chosen'", "data.on_identical")
    is_kept = np.ones(len(table), dtype=bool)
    is_kept[empty + identical] = False
    kept = table.select(is_kept)
    notes.num_empty_skipped = len(empty)
    notes.num_identical_skipped = len(identical)
    notes.num_duplicates = len(kept) - len(keys)
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
    """Returns a digest (128 bits of SHA-256) of what a model could see of a record: equal ones have equal digests."""
    fields = [getattr(record, name) for name in record.__slots__ if name not in NOT_CONTENT]
    try:
        packed = marshal.dumps([*map(_in_one_order, fields)], 2)
    except _OtherKeysError:
        packed = json.dumps(fields, sort_keys=True, default=str).encode()
    return hashlib.sha256(packed).digest()[:16]


class _OtherKeysError(Exception):
    pass


def _in_one_order(value: object) -> object:
    """Returns a field without its order of keys, if its only objects are messages of role and content."""
    if value is None or isinstance(value, str) or not value:
        return value
    if not isinstance(value, list) or any(type(item) is not dict or len(item) != 2 for item in value):
        raise _OtherKeysError
    try:
        return [(item["role"], item["content"]) for item in value]
    except KeyError:
        raise _OtherKeysError from None


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
