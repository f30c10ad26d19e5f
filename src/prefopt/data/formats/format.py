"""What is known of a format of rows, and what the modules of single formats share to read them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefopt.config.algorithms import Kind
from prefopt.data.messages import Message
from prefopt.data.values import RowError, check_text, describe, show_names

Row = dict[str, Any]

PASSED_ON = ("tools", "chat_template_kwargs")
"""Columns that stay as they are, whatever the format."""
PROMPTS = ("prompt", "question", "instruction", "query", "input")
"""Names of a question's column where a format prescribes none."""
ALPACA = ("instruction", "input")
"""Two columns of one question: what to do, and with what."""
HISTORY = "history"
"""Column of the turns before Alpaca's question."""

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
"""Columns with the scores of the two answers of a pair."""

PAIRS: tuple[Kind, ...] = ("preference",)
ALL: tuple[Kind, ...] = ("preference", "sft")
"""Kinds of rows among which a format is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the rows of one system are recognised and read.

    Attributes:
        detect: Whether a row, by its keys, is one of this format; asked for rows of the given kind.
        read: Per kind of rows: returns a row in TRL's format, or one of which `prefopt.data.pairing` makes pairs;
            None for a tie, which prefers no answer. Raises a `RowError` for a row that lacks something.
        columns: Per kind of rows: the columns that `read` reads, besides `PASSED_ON`.
        looked_for_in: `PAIRS` if demonstrations with its columns are TRL's.
        write: Per kind of rows: returns the rows of this format for a row in TRL's, as
            `prefopt.data.conversion.to_row` makes it of a record. Raises a `RowError` if something would be lost.
            Empty: the format is only read.
        margin: The column in which rows that are written say how much better the chosen answer is; empty if none does.
        unread: Names what `read` leaves out of `columns`, for rows of a kind: a column, or what is inside of one, such
            as `input.user`.
    """

    detect: Callable[[Row, Kind], bool]
    read: Mapping[Kind, Callable[[Row], Row | None]]
    columns: Mapping[Kind, Collection[str]]
    write: Mapping[Kind, Callable[[Row], list[Row]]] = field(default_factory=dict)
    margin: str = ""
    unread: Callable[[Row, Kind], list[str]] = lambda row, kind: []
    looked_for_in: tuple[Kind, ...] = ALL


class MissingColumnError(RowError):
    """A row has no value in a column that its format needs."""


def get(row: Row, name: str) -> Any:
    """Returns a column's value.

    Raises:
        MissingColumnError: The row has none.
    """
    if row.get(name) is None:
        raise MissingColumnError(f"field '{name}' is missing; found {show_names(row)}.")
    return row[name]


def look_up(value: object, table: Mapping[Any, str]) -> str | None:
    """Returns the entry of a value that a file holds, which may be anything; None if the table has none."""
    return table.get(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


def get_prompt(row: Row) -> Any:
    """Returns the question of a row, from `question_columns`.

    Raises:
        RowError: There is none.
    """
    asked = question_columns(row)
    if not asked:
        turns = next((name for name in ("messages", "conversation", "conversations") if row.get(name)), None)
        hint = f" Read the turns as the question with 'data.columns={{prompt: {turns}}}'" if turns else ""
        raise RowError(f"the question is missing: one of {', '.join(PROMPTS)}; found {show_names(row)}.{hint}")
    if asked[0] == ALPACA[0] and row.get(HISTORY):
        return [*history_messages(row), {"role": "user", "content": with_input(row)}]
    return with_input(row) if len(asked) > 1 else row[asked[0]]


def history_messages(row: Row) -> list[Message]:
    """Returns the turns before Alpaca's `instruction`, which a row may have as `history`: [question, answer] each.

    Raises:
        RowError: It is no such list.
    """
    history = row.get(HISTORY) or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError(f"'{HISTORY}' must be a list of [question, answer], found {describe(history)}.")
    return [
        {"role": role, "content": check_text(text, HISTORY)}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def question_columns(row: Row) -> tuple[str, ...]:
    """Returns the columns that hold the question: the first of `PROMPTS`, and `input` beside Alpaca's instruction."""
    name = next((name for name in PROMPTS if row.get(name) is not None), None)
    if name is None:
        return ()
    return ALPACA if name == ALPACA[0] and isinstance(row[name], str) and row.get(ALPACA[1]) is not None else (name,)


def unread_questions(row: Row, kind: str) -> list[str]:
    """Returns the columns of `PROMPTS` that have a value and are no part of the question."""
    read = question_columns(row)
    read = (*read, HISTORY) if ALPACA[0] in read else read
    return [name for name in (*PROMPTS, HISTORY) if row.get(name) is not None and name not in read]


def with_input(row: Row) -> str:
    """Returns Alpaca's `instruction`, followed by the `input` that it is about, if the row has one."""
    instruction, extra = check_text(get(row, ALPACA[0]), ALPACA[0]), check_text(row.get(ALPACA[1]) or "", ALPACA[1])
    return f"{instruction}\n{extra}" if extra.strip() else instruction


def get_messages(row: Row, name: str = "messages") -> list[Any]:
    """Returns a column that holds a list of messages, which are not looked at.

    Raises:
        RowError: The column is missing, empty or no list.
    """
    messages = get(row, name)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"'{name}' must be a list of messages {{role, content}}, found {describe(messages)}.")
    return messages


def keep_system(row: Row) -> Row:
    """Returns the column `system` as a row of its own; an empty one if there is no such column."""
    return {"system": row["system"]} if "system" in row else {}


def system_messages(row: Row) -> list[Message]:
    """Returns the text in the column `system` as a message; nothing if there is none."""
    system = row.get("system")
    return [{"role": "system", "content": check_text(system, "system")}] if system else []
