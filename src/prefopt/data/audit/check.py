"""What a check of the audit is, what it sees of the rows, and what it finds."""

import json
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.data.audit.masking import excerpt
from prefopt.data.messages import Content, Message
from prefopt.data.records import PreferencePair, Record, message_fields
from prefopt.data.split import prompt_keys

if TYPE_CHECKING:
    from prefopt.data.audit.tokens import Reader, RowTokens

Seen = TypeVar("Seen")

SPLITS = ("train", "held_out")
"""Names of the splits of the data themselves."""
MAX_EXAMPLES = 5
"""Rows that a finding names."""
BETWEEN = "\n\x00\n"
"""Stands between the texts of two rows in `Texts.joined`; no pattern of a check should match across it."""


@dataclass(frozen=True)
class Texts:
    """One text of each row of a chunk, such as its prompt; a pattern is searched in all of them at once.

    Attributes:
        each: The texts, in the order of the rows.
    """

    each: Sequence[str]

    @cached_property
    def joined(self) -> str:
        """All texts in one string, with `BETWEEN` between two of them: one search of it costs less than many."""
        return BETWEEN.join(self.each)

    @cached_property
    def ascii(self) -> bytes:
        """`joined` with a question mark for each character that is not ASCII, and so at the same positions.

        Strings of ASCII are found in it many times as fast: one emoji makes each character of `joined` four bytes.
        """
        return self.joined.encode("ascii", "replace")

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of characters of each text, shape (rows,)."""
        return np.fromiter(map(len, self.each), np.int64, len(self.each))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each text begins in `joined`, shape (rows,)."""
        ends = np.cumsum(self.lengths + len(BETWEEN))
        return np.concatenate([np.zeros(1, np.int64), ends[:-1]])

    def rows_at(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Returns which row, counted from 0 within the chunk, each position of `joined` belongs to."""
        return np.searchsorted(self.starts, np.asarray(positions, np.int64), side="right") - 1

    def rows_with(self, expression: str) -> list[int]:
        """Returns the rows, ascending, in which `ascii` matches an expression.

        It is one of RE2, which looks at each character once, however many alternatives there are.
        """
        import pyarrow as pa  # takes a fifth of a second to import
        import pyarrow.compute as pc

        places = np.append(self.starts, len(self.ascii))
        buffers = [None, pa.py_buffer(places), pa.py_buffer(self.ascii)]
        texts = pa.Array.from_buffers(pa.large_binary(), len(self.each), buffers)
        found: list[int] = pc.indices_nonzero(pc.match_substring_regex(texts, expression)).to_pylist()
        return found


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive rows of a split, as checks see them.

    Attributes:
        split: `train`, `held_out`, or the name of a file that the rows are compared with.
        start: Place of the first row within the split, from 0.
        records: The rows.
        reader: Turns rows into tokens as training does; None if no model was asked for.
    """

    split: str
    start: int
    records: Sequence[Record]
    reader: "Reader | None" = None

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def prompts(self) -> Texts:
        """What stands before the answer: all messages up to it, each on lines of its own; empty for a row of text."""
        return Texts([as_text(_before_answer(record)) for record in self.records])

    @cached_property
    def questions(self) -> Texts:
        """The user's part of the prompt, without system prompts and earlier answers."""
        return Texts([_question(record) for record in self.records])

    @cached_property
    def chosen(self) -> Texts:
        """The trained answer: chosen of a pair; of a demonstration the completion, the last turn or the text."""
        return Texts([as_text(_answer(record)) for record in self.records])

    @cached_property
    def rejected(self) -> Texts:
        """The rejected answer; empty for demonstrations."""
        return Texts([as_text(getattr(record, "rejected", "")) for record in self.records])

    @cached_property
    def calls(self) -> Texts:
        """What each row has besides its texts: tools, tool calls and the like, each value on a line with its name."""
        rows = zip(self.records, self.forms, strict=True)
        return Texts(["" if form.further is None else "\n".join(_lines(_besides(record))) for record, form in rows])

    @cached_property
    def all_texts(self) -> Texts:
        """Prompt, answers and calls of each row together, to tell in one search which rows are worth others."""
        fields = (self.prompts.each, self.chosen.each, self.rejected.each, self.calls.each)
        return Texts([*map("\n".join, zip(*fields, strict=True))])

    @cached_property
    def prompt_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The digests of all prompts by which a split is made, shape (keys,), and the place of each one's row.

        A row with several trained turns has several. See `prefopt.data.split.prompt_keys`.
        """
        keys, rows = [], []
        for row, record in enumerate(self.records, self.start):
            for key in prompt_keys(record):
                keys.append(key[:8])
                rows.append(row)
        return np.frombuffer(b"".join(keys), np.uint64), np.array(rows, np.int64)

    @cached_property
    def forms(self) -> list["Form"]:
        """What each row has besides its texts; see `form_of`."""
        return [*map(form_of, self.records)]

    @cached_property
    def tokens(self) -> "RowTokens":
        """What the tokenizer and the chat template make of the rows; only for checks that need a model."""
        assert self.reader is not None, "checks that need a model are not run without one"
        return self.reader.read(self.records)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row that a finding is about.

    Attributes:
        source: Its place: `file:line`.
        detail: What is to be seen there, in a few words, such as the place of the row that it repeats.
        text: The piece of its text that shows it, shortened; secrets and personal data are masked.
    """

    source: str
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a check has found, before the gate decides how bad that is.

    Attributes:
        rows: For each split: places of the rows concerned, ascending, shape (rows,).
        num_rows: Rows that were looked at; the finding's share is of these.
        share: Share of the rows concerned, unless the check says otherwise.
        gauge: What the gate compares with its limits where that is not the share, such as a distance from one half.
        summary: One sentence with the numbers, for people.
        remedy: What to do about it: a command or a setting that works as typed, where there is one.
        examples: At most `MAX_EXAMPLES`.
        values: Numbers for plots and programs, as they are written to JSON.
    """

    rows: Mapping[str, NDArray[np.int64]]
    num_rows: int
    share: float
    summary: str
    remedy: str = ""
    examples: Sequence[Example] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    gauge: float | None = None

    @property
    def count(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


@dataclass(frozen=True)
class Sides:
    """What a check can look up when it concludes.

    Attributes:
        records: The records of the audit by split.
        found: What the checks before it have found, in the order of `CheckName`.
    """

    records: Mapping[str, Sequence[Record]]
    found: Mapping[CheckName, Found] = field(default_factory=dict)

    @cached_property
    def num_rows(self) -> int:
        """Rows of the data themselves, without those of files to compare with."""
        return sum(len(self.records[split]) for split in SPLITS if split in self.records)

    @cached_property
    def has_pairs(self) -> bool:
        """Whether the rows are pairs; those of files to compare with do not count."""
        first = next((self.records[split][0] for split in SPLITS if len(self.records.get(split, ()))), None)
        return isinstance(first, PreferencePair)

    def show_answer(self, split: str, row: int, length: int = 100) -> str:
        """Returns the beginning of a row's chosen answer, as people may see it."""
        return excerpt(as_text(_answer(self.records[split][row])), length)

    def show_question(self, split: str, row: int, length: int = 100) -> str:
        """Returns the beginning of what the user says, or of a text without a prompt, as people may see it."""
        record = self.records[split][row]
        return excerpt(_question(record) or as_text(_answer(record)), length)

    def source(self, split: str, row: int) -> str:
        return self.records[split][row].source

    def examples(self, rows: Mapping[str, NDArray[np.int64]], detail: str = "") -> list["Example"]:
        """Returns the first rows as examples, all with the same words."""
        places = [(split, int(row)) for split, found in rows.items() for row in found[:MAX_EXAMPLES]]
        return [Example(source=self.source(split, row), detail=detail) for split, row in places[:MAX_EXAMPLES]]


@dataclass(frozen=True, kw_only=True)
class Check(Generic[Seen]):
    """One check of the audit. Its module in `prefopt.data.audit` has the check's name and defines it as `CHECK`.

    The rows stream through `examine` in chunks, in several processes; what it returns must be small, since all of it
    is kept until `conclude`: arrays of a few bytes a row, digests, counts; no texts and no records.

    Attributes:
        kinds: Kinds of rows that it applies to.
        examine: Looks at a chunk, without regard to other chunks. Its result can be pickled.
        conclude: Makes the finding of the results of all chunks, in their order, each with its chunk's split and
            start. None if these data have nothing that it could look at; a text if it cannot judge them: the reason.
        needs: Package of the extra `audit` that it uses, by the name under which it is imported; None if none.
        needs_model: Whether it looks at tokens.
        is_slow: Whether it compares all rows with each other or trains a classifier.
        compares: Whether it also sees the rows of files that the user names to compare with.
        is_of_whole: Whether its share measures the data as a whole, so that it need not name rows. The share of any
            other check is above 0 only if it names rows.
    """

    kinds: tuple[Kind, ...] = ("preference", "sft")
    examine: Callable[[Chunk], Seen]
    conclude: Callable[[Sequence[tuple[str, int, Seen]], Sides], Found | str | None]
    needs: str | None = None
    needs_model: bool = False
    is_slow: bool = False
    compares: bool = False
    is_of_whole: bool = False


def as_text(content: Content) -> str:
    """Returns text as it is, and messages as the texts of each, on lines of their own."""
    if isinstance(content, str):
        return content
    if len(content) == 1:
        text: str = content[0].get("content", "")
        return text
    return "\n".join([message.get("content", "") for message in content])


def _before_answer(record: Record) -> Content:
    if record.prompt is not None:
        return record.prompt
    messages = getattr(record, "messages", None)
    return messages[:-1] if messages else ""


def _answer(record: Record) -> Content:
    if isinstance(record, PreferencePair):
        return record.chosen
    if record.messages is not None:
        return record.messages[-1:]
    return record.completion if record.completion is not None else record.text or ""


def _question(record: Record) -> str:
    before = _before_answer(record)
    if isinstance(before, str):
        return before
    return as_text([message for message in before if message["role"] == "user"])


class Form(NamedTuple):
    """All that a record has besides its texts: with both, two records are equal or not.

    Attributes:
        roles: The roles of the messages of each field that holds some, in the order of the fields.
        further: Tools, further keys of messages and the like, as JSON; None if there are none.
    """

    roles: tuple[tuple[str, ...], ...]
    further: str | None


def form_of(record: Record) -> Form:
    """Returns the form of a record."""
    roles: list[tuple[str, ...]] = []
    further: list[Message] = []
    for chat in message_fields(record).values():
        roles.append(tuple([message["role"] for message in chat]))
        for message in chat:
            if len(message) > 2 or "content" not in message:
                further.append(message)
    given = (record.tools, record.chat_template_kwargs, further)
    said = json.dumps(given, sort_keys=True, default=str) if any(given) else None
    return Form(tuple(roles), said)


def _besides(record: Record) -> list[Any]:
    further = [
        {key: value for key, value in message.items() if key not in ("role", "content")}
        for chat in message_fields(record).values()
        for message in chat
        if len(message) > 2 or "content" not in message
    ]
    return [given for given in (record.tools, record.chat_template_kwargs, further) if given]


def _lines(value: object, name: str = "") -> Iterator[str]:
    """Yields texts and numbers at every depth, each after its key as in `key: value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, name)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield f"{name}: {value}" if name else str(value)


def hashes(keys: Collection[Hashable]) -> NDArray[np.uint64]:
    """Returns Python's hash of each key, shape (keys,): equal in all processes that were forked from this one."""
    return np.fromiter(map(hash, keys), np.int64, len(keys)).view(np.uint64)


def by_split(places: Sequence[tuple[str, NDArray[np.int64]]]) -> dict[str, NDArray[np.int64]]:
    """Joins the places of rows that chunks have found, by split."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for split, rows in places:
        found.setdefault(split, []).append(rows)
    return {split: np.concatenate(parts).astype(np.int64) for split, parts in found.items()}


def conclude_rows(
    seen: Sequence[tuple[str, int, NDArray[np.int64]]], sides: Sides, *, one: str, what: str, remedy: str
) -> Found:
    """Returns the finding of a check that finds rows, by their places within their split.

    Args:
        seen: As `Check.conclude` gets it.
        sides: The records.
        one: What one of them is called, such as `pair`.
        what: What they have in common, as it follows their number.
        remedy: What to do about them.
    """
    rows = by_split([(split, found) for split, _, found in seen])
    count = sum(map(len, rows.values()))
    return Found(
        rows=rows,
        num_rows=sides.num_rows,
        share=count / sides.num_rows,
        summary=f"{say(count, one)} {what}",
        remedy=remedy,
        examples=sides.examples(rows),
    )


def say(count: int, one: str, many: str = "") -> str:
    """Returns a number with the word for it: `1 pair`, `1,200 pairs`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
