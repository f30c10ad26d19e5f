"""Valid records that are not to be learned (empty completions, identical pairs, unwanted answers), and duplicates."""

import hashlib
import json
import marshal
from collections.abc import Sequence

import numpy as np

from prefopt.data.bad_rows import BadRows
from prefopt.data.labels import Labels
from prefopt.data.messages import Content, Message
from prefopt.data.read_notes import ReadNotes
from prefopt.data.records import NOT_CONTENT, PreferencePair, Record
from prefopt.data.table import Table

DEFECTS = {
    "on_empty": "this row has an empty completion",
    "on_identical": "this row has 'rejected' equal to 'chosen'",
}
"""What is wrong with a row, by the setting that decides about it."""
UNWANTED = "unwanted"
"""A further kind of rows that `data.on_bad` decides about."""


def drop_unwanted(records: Table[Record], labels: Labels, bad: BadRows, notes: ReadNotes) -> Table[Record]:
    """Returns the records without those whose label in KTO's format says that the answer is to be avoided.

    Args:
        records: Demonstrations; pairs have no labels.
        labels: The labels of all files of the data set: only all together say whether a column is a label.
        bad: Gets the rows that are left out.
        notes: Their count is added to these.
    """
    notes.unclear_labels = labels.find_unclear()
    unwanted = labels.find_unwanted()
    if not unwanted:
        return records
    is_kept = np.ones(len(records), dtype=bool)
    for row, record in enumerate(records):
        if (found := unwanted.get(record.source)) is not None:
            bad.add(record.source, found, kind=UNWANTED, remedy=labels.remedy)
            is_kept[row] = False
    notes.num_unwanted_skipped = bad.num_skipped(UNWANTED)
    return records.select(is_kept)


def drop_defects(records: Sequence[Record], bad: BadRows, notes: ReadNotes) -> Table[Record]:
    """Returns the records without empty and identical ones, and counts these and the duplicates in `notes`.

    Duplicates are kept. A pair with two empty completions counts as empty, not as identical.

    Args:
        records: The records of one split.
        bad: Gets the empty and identical ones.
        notes: The counts of the split.
    """
    table = Table.of(records)
    none_bad = bad.empty()

    def look(part: Table[Record]) -> tuple[list[bytes | None], BadRows]:
        """Returns the key of each record, None for those that are left out."""
        keys: list[bytes | None] = []
        found = none_bad.empty()
        for record in part:
            switch = "on_empty" if is_empty(record) else "on_identical" if is_identical(record) else ""
            if switch:
                found.add(record.source, DEFECTS[switch], switch=switch, remedy=_remedy(switch))
            keys.append(None if switch else record_key(record))
        return keys, found

    is_kept = np.ones(len(table), dtype=bool)
    different: set[bytes] = set()
    row = 0
    for keys, found in table.map_parts(look, doing="reading"):
        bad.merge(found)
        is_kept[row : row + len(keys)] = [key is not None for key in keys]
        different.update(key for key in keys if key is not None)
        row += len(keys)
    kept = table.select(is_kept)
    notes.num_empty_skipped = bad.num_skipped("on_empty")
    notes.num_identical_skipped = bad.num_skipped("on_identical")
    notes.num_duplicates = len(kept) - len(different)
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
    for message in content:
        if not message.get("content", "").strip() and message["role"] == "assistant" and not message.get("tool_calls"):
            return True
    return False


def _stripped(content: Content) -> str | list[Message]:
    if isinstance(content, str):
        return content.strip()
    return [{**message, "content": message.get("content", "").strip()} for message in content]
