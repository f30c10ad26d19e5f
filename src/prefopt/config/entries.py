"""Lists of tables in a setting, such as `evaluation.judges`: each table is one thing of a named kind."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from prefopt.config.ranges import require
from prefopt.process.errors import shorten

Entry = TypeVar("Entry")
KIND = "kind"
WORDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def read_entries(setting: str, given: object, kinds: Mapping[str, type[Entry]]) -> list[Entry]:
    """Returns the entries of a setting as instances of the dataclass of their kind, each with a name of its own.

    Args:
        setting: Name of the setting, for errors.
        given: A list of tables `{kind: ..., ...}`; the name of a kind alone stands for a table with nothing else.
        kinds: Name of a kind -> its dataclass, with a field `name`.

    Raises:
        UserError: There is no such kind or key, a value has another type or is missing, or two have one name.
    """
    items = given if isinstance(given, list | tuple) else [given]
    found = [_read(setting, item, kinds) for item in items]
    names = [str(getattr(entry, "name", "")) for entry in found]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    require(twice is None, f"{setting}: two entries have the name '{twice}'. Give each a name: {{name: ..., ...}}.")
    return found


def _read(setting: str, item: object, kinds: Mapping[str, type[Entry]]) -> Entry:
    table = {KIND: item} if isinstance(item, str) else item
    require(
        isinstance(table, Mapping) and isinstance(table.get(KIND), str),
        f"{setting}: an entry is a table {{kind: ..., ...}}, found {shorten(str(item))}. Kinds: {', '.join(kinds)}.",
    )
    assert isinstance(table, Mapping)
    kind = table[KIND]
    require(
        kind in kinds, f"{setting}: no kind {shorten(repr(kind))}; there are {', '.join(kinds)}.{_near(kind, kinds)}"
    )
    values = {key: value for key, value in table.items() if key != KIND}
    return read_table(f"{setting}: {kind}:", values, kinds[kind])


def read_table(where: str, values: Mapping[Any, object], kind: type[Entry]) -> Entry:
    """Returns a table as an instance of a dataclass.

    Args:
        where: What stands before each error.
        values: The table.
        kind: The dataclass; its fields are texts, numbers, truths, lists, tables, or unset.

    Raises:
        UserError: There is no such key, or a value has another type or is missing.
    """
    types, known = get_type_hints(kind), {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        require(
            key in known, f"{where} no key {shorten(repr(key))}; there are {', '.join(known)}.{_near(str(key), known)}"
        )
        wanted = _allowed(types[key])
        is_right = any(_is_of(value, each) for each in wanted)
        require(is_right, f"{where} {key} must be {_say(wanted)}, found {shorten(repr(value))}.")
    for name, field in known.items():
        is_needed = field.default is MISSING and field.default_factory is MISSING
        require(not is_needed or name in values, f"{where} {name} is required, {_say(_allowed(types[name]))}.")
    return kind(**values)


def _allowed(hint: Any) -> list[type]:
    """Returns the plain types of a hint such as `dict[str, float] | None`."""
    parts: Sequence[Any] = get_args(hint) if isinstance(hint, UnionType) else [hint]
    return [get_origin(part) or part for part in parts]


def _is_of(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _say(types: Sequence[type]) -> str:
    return " or ".join("null" if each is NoneType else WORDS[each] for each in types)


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""
