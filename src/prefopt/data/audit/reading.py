"""Reads all that an audit looks at: every row, those that training would refuse too, and files to compare with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName, OnBadRow
from prefopt.config.mixture import parts_of
from prefopt.config.schema import DataConfig
from prefopt.data.audit.check import MAX_EXAMPLES, say
from prefopt.data.audit.masking import mask_private
from prefopt.data.bad_rows import MISREAD, BadRows, is_misread
from prefopt.data.files import iter_rows
from prefopt.data.loading import read_all
from prefopt.data.notes import SplitName
from prefopt.data.records import Record, SFTExample
from prefopt.process.errors import UserError

QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "turns", "messages", "conversations", "text")
"""Columns of a file to compare with that may hold what is asked; the first that a row has is read."""
SUGGESTED = re.compile(r"'data\.columns=\{[^']*\}'")
"""The setting that an error of a missing column suggests; names in it hold no quotes."""
Entry = dict[str, Any]
"""What a check has measured, as it is kept; see `prefopt.data.audit.finding.Finding.of`."""


class AllBadRows(BadRows):
    """Rows that cannot be read, with the place of each, also if training leaves them out."""

    def __init__(self, setting: str, config: DataConfig) -> None:
        super().__init__(setting, replace(config, on_bad=OnBadRow.refuse))
        self.places: list[str] = []
        self.are_left_out = config.on_bad is OnBadRow.skip
        """Whether training leaves them out."""

    def add(self, place: str, found: str, **details: Any) -> None:
        """Adds a row; see `BadRows.add`."""
        self.places.append(place)
        super().add(place, found, **details)

    def empty(self) -> "AllBadRows":
        """Returns an object without rows; see `BadRows.empty`."""
        return AllBadRows(self.setting, self._config)

    def merge(self, later: BadRows) -> None:
        """Adds rows that follow; see `BadRows.merge`."""
        super().merge(later)
        self.places += later.places if isinstance(later, AllBadRows) else []


@dataclass(frozen=True)
class Material:
    """The rows of an audit.

    Attributes:
        records: The rows by split: `train`, `held_out`, and the names of files to compare with.
        unread: What the check `schema` has found.
        unread_places: The rows that it has found.
        remarks: Sentences that say what else reading did: rows that are no records, columns that are ignored.
    """

    records: Mapping[str, Sequence[Record]]
    unread: Entry
    unread_places: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of_used(cls, records: Mapping[str, Sequence[Record]]) -> "Material":
        """Returns the rows that training uses, of which all could be read."""
        return cls(records, describe_unread([]))


def read_material(config: DataConfig, *, kind: Kind, seed: int, against: Sequence[str] = ()) -> Material:
    """Reads the rows of the settings, and the files to compare with.

    Raises:
        UserError: A file cannot be read. A row that cannot be read is a finding.
    """
    others = {name: list(read_questions(name)) for name in against}
    specs: dict[SplitName, object] = {"train": config.train, "held_out": config.held_out}
    bad = {split: AllBadRows(f"data.{split}", config) for split, spec in specs.items() if spec is not None}
    splits = read_all(config, kind=kind, seed=seed, bad=bad)
    held_out = {} if splits.held_out is None else {"held_out": splits.held_out}
    records = {"train": splits.train, **held_out}
    num_used: dict[SplitName, int] = {"train": len(splits.train), "held_out": len(splits.held_out or ())}
    if config.held_out is None:
        num_used["train"] += num_used["held_out"]  # set apart of it
    unread = next(
        (
            describe_unused(split, rows, splits.notes.remarks())
            for split, rows in bad.items()
            if not num_used[split] and len(rows.places) < rows.num_rows
        ),
        describe_unread([*bad.values()]),
    )
    places = frozenset(place for rows in bad.values() for place in rows.places)
    remarks = [*splits.notes.remarks(), *describe_limits(config)]
    return Material({**records, **others}, unread, places, tuple(remarks))


def describe_limits(config: DataConfig) -> list[str]:
    """Returns a sentence if training takes only some rows of the files: the others are not audited."""
    parts = (*parts_of(config.train, "data.train"), *parts_of(config.held_out, "data.held_out"))
    if config.max_rows is None and all(part.max_rows is None for part in parts):
        return []
    return ["rows that max_rows leaves out are not audited, but for those that training refuses"]


def describe_unread(splits: Sequence[AllBadRows]) -> Entry:
    """Returns the entry of the check `schema`: the rows that cannot be read, and what to do about them.

    It is compared with no limit if training leaves them out (`data.on_bad=skip`).
    """
    classes = sorted((each for rows in splits for each in rows.refused()), key=lambda each: -each.count)
    count, num_rows = sum(each.count for each in classes), sum(rows.num_rows for rows in splits)
    first = [
        [
            {"source": place, "detail": f"as {each.places[0]}" if index else mask_private(each.found), "text": ""}
            for index, place in enumerate(each.places)
        ]
        for each in classes
    ]
    shown = [each for rows in zip_longest(*first) for each in rows if each is not None][:MAX_EXAMPLES]
    is_misread_as_skipped = any(is_misread(len(rows.places), rows.num_rows) for rows in splits)
    are_left_out = any(rows.are_left_out for rows in splits) and not is_misread_as_skipped
    reasons = f", for {len(classes)} reasons" if classes[1:] else ""
    if are_left_out:
        remedy = "Training leaves them out. A copy without them: prefopt audit --fix."
    elif is_misread_as_skipped or is_misread(count, num_rows):
        names = next(filter(None, (SUGGESTED.search(mask_private(each.found)) for each in classes)), None)
        remedy = f"Try {names[0]}. {MISREAD}" if names else MISREAD
    else:
        remedy = "Mend them, or leave them out: data.on_bad=skip, or prefopt audit --fix."
    return _as_entry(
        count,
        num_rows,
        gauge=0.0 if are_left_out else count / max(num_rows, 1),
        summary=f"{say(count, 'row')} cannot be read{reasons}{' (data.on_bad=skip)' if are_left_out else ''}",
        remedy=remedy if count else "",
        examples=shown,
        values={"reasons": [{"found": mask_private(each.found), "count": each.count} for each in classes]},
    )


def describe_unused(split: SplitName, rows: AllBadRows, remarks: Sequence[str]) -> Entry:
    """Returns the entry of the check `schema` for a split of which rows were read, but none can be used."""
    reasons = [remark.removeprefix(f"{split}: ") for remark in remarks if remark.startswith(f"{split}: ")]
    return _as_entry(
        rows.num_rows,
        rows.num_rows,
        gauge=1.0,
        summary="; ".join([f"no row of data.{split} can be used", *reasons]),
        remedy="Training would end with no rows. Give others, or see algorithm and data.format.",
        examples=[],
        values={"reasons": [{"found": reason, "count": rows.num_rows} for reason in reasons]},
    )


def _as_entry(count: int, num_rows: int, **others: Any) -> Entry:
    return {"check": CheckName.schema.value, "count": count, "share": count / max(num_rows, 1), **others}


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
