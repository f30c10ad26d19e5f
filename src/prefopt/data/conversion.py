"""Writes records in the rows of another system: all of them or none, and every reason why one cannot be written."""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from prefopt.config.algorithms import Kind
from prefopt.config.provider import Known, Limit, LimitName, ProviderConfig
from prefopt.data.formats import FORMATS
from prefopt.data.formats.format import Row
from prefopt.data.messages import UNTRAINED
from prefopt.data.provider_rules import check_rules
from prefopt.data.records import Record, SFTExample
from prefopt.data.values import RowError
from prefopt.process.errors import UserError, explained
from prefopt.storage.files import PARTIAL, bring_to_disk

SHOWN_PLACES = 3
"""Most rows that are named for one reason."""


@dataclass(kw_only=True)
class Written:
    """What was written."""

    num_records: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    longest_bytes: int = 0
    """Bytes of the longest row."""
    longest: str = ""
    """Place of the record it was made of."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> places of the rows that cannot be written."""


def to_row(record: Record) -> Row:
    """Returns a record as a row in TRL's format.

    Marks of answers in a pair's prompt are left out: none of the prompt is trained.
    """
    row = {f.name: value for f in fields(record) if f.name != "source" and (value := getattr(record, f.name)) or value == ""}
    if not isinstance(record, SFTExample) and isinstance(record.prompt, list):
        row["prompt"] = [{key: item for key, item in turn.items() if key != UNTRAINED} for turn in record.prompt]
    return row


def write_records(records: Sequence[Record], provider: ProviderConfig, kind: Kind, path: Path) -> Written:
    """Writes `records` to `path` as JSON lines.

    Args:
        records: Pairs or demonstrations.
        provider: The system whose rows they become.
        kind: Which of both they are.
        path: The file, which appears when all rows are written.

    Raises:
        UserError: A row cannot be written without loss or breaks a rule, or the file a limit. Nothing is left behind.
    """
    write = FORMATS[provider.layout].write.get(kind)
    if write is None or kind not in provider.rows:
        raise UserError(_other_kind(provider, kind))
    written = Written()
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    with explained(path, "written"):
        try:
            with partial.open("wb") as file:
                for record in records:
                    for line in _lines(record, write, provider, kind, written):
                        file.write(line)
                file.flush()
                os.fsync(file.fileno())
            _refuse(written, provider, kind)
            partial.replace(path)
            bring_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    return written
