"""Counts and the words that go with them."""

import re

import pytest

from prefopt.data.encoding import TokenizeNotes
from prefopt.data.mix import SliceNotes
from prefopt.data.notes import READ_SENTENCES, TOKENIZE_SENTENCES, DataNotes
from prefopt.data.read_notes import ReadNotes
from prefopt.data.wording import agree

ONE = re.compile(
    r"^train: 1 (?:of these prompts (?:begins|ends) |"
    r"(?:assistant |prompt )?(?:row|pair|completion|turn|token|greeting|thought)\b)"
)
MANY = re.compile(
    r"^train: 2 (?:of these prompts (?:begin|end) |"
    r"(?:assistant |prompt )?(?:rows|pairs|completions|turns|tokens|greetings|thoughts)\b)"
)
OF_MANY = re.compile(r"\b(?:have|hold|keep|lose|repeat|their|them|chats:)\b")
"""Words that one row does not go with, where a sentence speaks of what it counts."""


def notes(number: int) -> dict[str, DataNotes]:
    """Notes in which one count is not zero, for each sentence; and those of the columns, keys and parts."""
    read = {f"read {name}": DataNotes(read={"train": ReadNotes(**{name: number})}) for name in READ_SENTENCES}
    tokenized = {name: DataNotes(tokenized={"train": TokenizeNotes(**{name: number})}) for name in TOKENIZE_SENTENCES}
    others = {
        "overlap": DataNotes(num_overlap_skipped=number),
        "ignored": DataNotes(read={"train": ReadNotes(ignored_columns={"c": number})}),
        "unread": DataNotes(tokenized={"train": TokenizeNotes(unread_keys={"k": number})}),
        "part": DataNotes(slices={"train": {"p": SliceNotes(num_records=number)}}),
        "used": DataNotes(num_records={"train": number}),
        "rows read": DataNotes(read={"train": ReadNotes(num_rows=number)}),
    }
    return {**read, **tokenized, **others}


@pytest.mark.parametrize("name", notes(1))
def test_every_sentence_agrees_with_its_count(name: str) -> None:
    (one,) = [line for line in notes(1)[name].lines() if " 0 rows" not in line]
    (many,) = [line for line in notes(2)[name].lines() if " 0 rows" not in line]
    assert not set("[|]") & set(one + many)
    counted = name in ("ignored", "unread", "part", "rows read", "used")
    assert ("1 row" in one and "rows" not in one) if counted else ONE.search(one), one
    assert ("2 rows" in many) if counted else MANY.search(many), many
    first = re.split(r"[:;(,.]", one.removeprefix("train: "))[0]
    assert not OF_MANY.search(first), first


def test_only_the_words_in_brackets_depend_on_the_number() -> None:
    text = "{n} [row is|rows are] like a[0] and [b]: [it|them]"
    assert agree(text, 1) == "{n} row is like a[0] and [b]: it"
    assert agree(text, 0) == agree(text, 2) == "{n} rows are like a[0] and [b]: them"
