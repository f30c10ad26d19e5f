"""Columns under other names: `data.columns` maps them, and errors of missing columns suggest it."""

import difflib
import re
from collections.abc import Mapping, Sequence

from prefopt.data.formats import kto
from prefopt.data.formats.format import PROMPTS, Row
from prefopt.data.labels import says_wanted
from prefopt.data.values import RowError

CALLED = {
    "messages": ("conversation", "dialogue", "dialog", "turns", "chat"),
    "prompt": ("question", "instruction", "query", "input", "request", "user"),
    "chosen": ("accepted", "preferred", "good", "better", "best", "positive", "win", "winner"),
    "rejected": ("declined", "dispreferred", "bad", "worse", "worst", "negative", "lose", "loser"),
    "completion": ("answer", "response", "output", "reply", "target", "assistant"),
    "label": ("thumbs", "thumb", "feedback", "vote", "upvoted", "liked", "verdict", "desirable", "wanted"),
}
"""What columns are called elsewhere; also with more words around: `good_answer`."""
MAX_NAME = 60
"""Most characters of a name that is suggested."""
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SEPARATOR = re.compile(r"[\W_]+")


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Returns `row` with the names that prefopt reads in the place of the file's.

    Args:
        row: A row as it stands in the file.
        columns: prefopt's name of a column -> the file's.

    Raises:
        RowError: The row has a value under both names.
    """
    present = {name: source for name, source in columns.items() if source in row and source != name}
    if not present:
        return row
    for name, source in present.items():
        if row.get(name) is not None and name not in present.values():
            raise RowError(f"data.columns reads '{source}' as '{name}', but the row has '{name}' too. Leave one out.")
    renamed = {key: value for key, value in row.items() if key not in present.values() and key not in present}
    return {**renamed, **{name: row[source] for name, source in present.items()}}


def suggest(row: Row, missing: Sequence[str], *, optional: Sequence[str] = ()) -> str:
    """Returns the setting that reads the row's columns as the missing ones; empty unless all are found.

    Args:
        row: The row as it stands in the file.
        missing: Columns without which the row is nothing.
        optional: Columns that it may have besides.
    """
    free = [key for key in row if isinstance(key, str) and key not in CALLED and _can_be_typed(key)]
    found: dict[str, str] = {}
    for name in (*optional, *missing):
        match = _alike(name, [key for key in free if key not in found.values()])
        if match is not None:
            found[name] = match
    return _setting(found) if found.keys() >= set(missing) else ""


def suggest_labelled(row: Row) -> str:
    """Returns the setting that reads a row as a single answer with a label (KTO's); empty if it is none."""
    missing = ["label"] if any(row.get(name) is not None for name in kto.ANSWERS) else ["completion", "label"]
    labels = {key for key in row if says_wanted(row[key]) is not None}
    told = {key: value for key, value in row.items() if key in labels or not _alike("label", [key])}
    return suggest(told, missing, optional=[] if any(name in row for name in PROMPTS) else ["prompt"])


def _setting(found: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{name}: {_typed(source)}" for name, source in found.items())
    return f" Read columns under other names with 'data.columns={{{pairs}}}'"


def _alike(name: str, keys: list[str]) -> str | None:
    """Returns the key that says the same as `name`: as a whole, nearly as spelt, or as one of its words."""
    words = (name, *CALLED.get(name, ()))
    exact = [key for key in keys if key.lower() in words]
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.75)
    part = [key for key in keys if not key.lower().endswith("id") and set(words) & set(SEPARATOR.split(key.lower()))]
    return next(iter((*exact, *near, *part)), None)


def _can_be_typed(name: str) -> bool:
    return len(name) <= MAX_NAME and name.isprintable() and not set(name) & set("'\"\\")


def _typed(name: str) -> str:
    """A column's name as it is typed in an override."""
    return name if PLAIN.fullmatch(name) else f'"{name}"'
