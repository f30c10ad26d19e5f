"""Reads all that an audit looks at: every row, those that training would refuse too, and files to compare with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.config.schema import DataConfig
from prefopt.data.files import iter_rows
from prefopt.data.loading import read_all
from prefopt.data.records import Record, SFTExample
from prefopt.data.strict_json import JSONError
from prefopt.data.values import RowError
from prefopt.process.errors import UserError

QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "turns", "messages", "conversations", "text")
"""Columns of a file to compare with that may hold what is asked; the first that a row has is read."""
PLACE = re.compile(r"(?P<source>.*?:(?:row )?\d+): (?P<fault>.*)", re.DOTALL)

Entry = dict[str, Any]
"""What a check has measured, as it is kept; see `prefopt.data.audit.finding.Finding.of`."""


@dataclass(frozen=True)
class Material:
    """The rows of an audit.

    Attributes:
        records: The rows by split: `train`, `held_out`, and the names of files to compare with.
        unread: What the check `schema` has found.
    """

    records: Mapping[str, Sequence[Record]]
    unread: Entry = field(default_factory=lambda: describe_unread([]))


def read_material(config: DataConfig, *, kind: Kind, seed: int, against: Sequence[str] = ()) -> Material:
    """Reads the rows of the settings, and the files to compare with.

    Raises:
        UserError: A file cannot be read. A row that cannot be read is a finding.
    """
    others = {name: list(read_questions(name)) for name in against}
    try:
        splits = read_all(config, kind=kind, seed=seed)
    except UserError as error:
        found = PLACE.fullmatch(str(error))
        if not isinstance(error.__cause__, RowError | JSONError) or found is None:
            raise
        return Material({}, describe_unread([(found["source"], found["fault"])]))
    held_out = {} if splits.held_out is None else {"held_out": splits.held_out}
    return Material({"train": splits.train, **held_out, **others})


def describe_unread(rows: Sequence[tuple[str, str]], num_rows: int = 0) -> Entry:
    """Returns the entry of the check `schema`.

    Args:
        rows: Place and fault of the rows that cannot be read.
        num_rows: All rows; 0 if reading ended at the first fault.
    """
    share = len(rows) / max(num_rows, len(rows), 1)
    return {
        "check": CheckName.schema.value,
        "count": len(rows),
        "share": share,
        "gauge": share,
        "summary": f"{len(rows):,} rows cannot be read"
        if num_rows or not rows
        else f"a row cannot be read: {rows[0][1]}",
        "remedy": "Mend the rows or drop them; what was not read was not checked either." if rows else "",
        "examples": [{"source": source, "detail": fault, "text": ""} for source, fault in rows[:5]],
        "values": {},
    }


def read_questions(name: str) -> Iterator[SFTExample]:
    """Yields what each row of a file asks, whatever its format.

    Raises:
        UserError: The file cannot be read, or a row has none of the columns `QUESTIONS`.
    """
    for row, source in iter_rows(name):
        column = next((column for column in QUESTIONS if row.get(column)), None)
        text = "" if column is None else question_of(row[column])
        if column == "instruction" and isinstance(row.get("input"), str) and row["input"]:
            text = f"{text}\n{row['input']}"
        if not text:
            raise UserError(
                f"{source}: --against finds no question in this row. It looks for a column {', '.join(QUESTIONS)}."
            )
        yield SFTExample(prompt=text, completion="", source=source)


def question_of(value: object) -> str:
    """Returns what the user asks in the value of a column: text, turns, or messages."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    if all(isinstance(turn, str) for turn in value):
        return "\n".join(value)
    messages = [turn for turn in value if isinstance(turn, dict)]
    asked = [turn for turn in messages if turn.get("role", turn.get("from")) in ("user", "human")]
    return "\n".join(str(turn.get("content", turn.get("value", ""))) for turn in asked)
