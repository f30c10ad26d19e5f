"""Every setting with its type, default and meaning, read from the schemas: for docs/settings.md and `prefopt list`.

`python -m prefopt.config.setting_docs` prints the page; `make docs` writes it.
"""

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any

from omegaconf import MISSING

from prefopt.config.catalog import read_options
from prefopt.config.choices import LOSS_TYPES
from prefopt.config.cluster import SUBMIT
from prefopt.config.composition import Tree
from prefopt.config.load import TRAIN

REQUIRED = "required"
PATHS = "path, or a list of them"
KINDS = {
    "algorithm.loss_type": " / ".join(f"`{name}`" for name in LOSS_TYPES),
    "data.as_chat": "`true` / `false` / `auto`",
    "data.train": PATHS,
    "data.held_out": PATHS,
    "data.test": PATHS,
    "evaluation.pairs": PATHS,
    "evaluation.contestants": "list of names, folders and tables",
    "evaluation.judges": "list of kinds and tables",
    "evaluation.tasks": "list of kinds and tables",
    "trainer.tokens_per_device": "whole number / `auto`",
    "trainer.gradient_checkpointing": "`true` / `false` / `auto`",
    "sweep.points": "list of lists of overrides",
    "chain.stages": "list of tables",
}
"""Types in words of settings that take values of several types."""
INTRODUCTION = """# Settings

Every setting that a command line, an experiment or a file of your own may give, as `group.setting=value`: its type or
its choices, its default and what it does. A group's options (`model=llama3_2_1b`) are files that set several of them
at once: `prefopt list` shows them. `prefopt train ... --cfg job` prints the values of a run; `null` means "unset". A
value with brackets, blanks, commas or equals signs is quoted for Hydra and for the shell:
`'data.train="a=b.jsonl"'`.

This page is written by `make docs` from the schemas in `src/prefopt`; a test compares both.
"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` / `false`", dict: "table"}
COMMANDS = {"train": "Of a run", "submit": "Of a submission (`prefopt submit`)"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: Dotted name, as it is typed.
        kind: Its type in words, or its choices.
        default: As it is typed, or `REQUIRED`.
        meaning: The text below its field in the schema, in one line.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A config group, or one variant of it such as `algorithm=dpo`."""

    title: str
    about: str
    settings: list[Setting]

    @property
    def is_variant(self) -> bool:
        """True if other options of the group have other settings."""
        return "=" in self.title


def read_sections(tree: Tree) -> Iterator[Section]:
    """The groups of a tree in the order of its schema."""
    for field in fields(tree.root):
        variants = tree.variants.get(field.name)
        for name, schema in (variants or {"": typing.get_type_hints(tree.root)[field.name]}).items():
            title = f"{field.name}={name}" if name else field.name
            yield Section(title, _first_paragraph(schema), list(_read_settings(schema, f"{field.name}.")))


def to_markdown() -> str:
    """The text of docs/settings.md."""
    parts = [INTRODUCTION]
    for tree in (TRAIN, SUBMIT):
        parts.append(f"## {COMMANDS[tree.primary]}\n")
        parts += [_section(section) for section in read_sections(tree)]
    return "\n".join(parts)


def _section(section: Section) -> str:
    options = read_options().get(section.title, [])
    names = ", ".join(f"`{option.name}`" for option in options)
    about = _cell(section.about) + (f" Options: {names}." if len(options) > 1 else "")
    rows = [f"| `{s.name}` | {_cell(s.kind)} | {_cell(s.default)} | {_cell(s.meaning)} |" for s in section.settings]
    head = [f"### {section.title}\n", f"{about}\n", "| setting | type | default | is |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _read_settings(schema: type[Any], prefix: str) -> Iterator[Setting]:
    hints, meanings = typing.get_type_hints(schema), _read_meanings(schema)
    for field in fields(schema):
        name = f"{prefix}{field.name}"
        if is_dataclass(hints[field.name]):
            yield from _read_settings(typing.cast(type[Any], hints[field.name]), f"{name}.")
        else:
            kind = _kind(hints[field.name]) or KINDS.get(name, "")
            yield Setting(name, kind, _default(field), meanings.get(field.name, ""))


def _read_meanings(schema: type[Any]) -> dict[str, str]:
    """The text below each field of a dataclass and of the dataclasses that it extends."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in schema.__mro__ if is_dataclass(cls)]):
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(parsed, ast.ClassDef)
        for field, below in zip(parsed.body, parsed.body[1:], strict=False):
            is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_said:
                found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return found


def _kind(hint: Any) -> str:
    """A type in words, or its choices; empty for `Any`."""
    if hint is Any or Any in typing.get_args(hint)[:1]:
        return ""
    parts = [part for part in typing.get_args(hint) if part is not NoneType] if _is_union(hint) else [hint]
    found = []
    for part in parts:
        if isinstance(part, type) and issubclass(part, Enum):
            found += [f"`{member.name}`" for member in part]
        elif typing.get_origin(part) is list:
            found.append(f"list of {WORDS[typing.get_args(part)[0]]}s")
        else:
            found.append(WORDS[typing.get_origin(part) or part])
    return " / ".join(found)


def _is_union(hint: object) -> bool:
    return NoneType in typing.get_args(hint)


def _default(field: "Field[Any]") -> str:
    value = field.default if field.default is not NO_DEFAULT else None
    if field.default_factory is not NO_DEFAULT:
        value = field.default_factory()
    if isinstance(value, str) and value == MISSING:
        return REQUIRED
    if isinstance(value, Enum):
        return f"`{value.name}`"
    if isinstance(value, bool) or value is None:
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{value}`"


def _first_paragraph(schema: type) -> str:
    return " ".join((inspect.getdoc(schema) or "").split("\n\n")[0].split())


def _cell(text: str) -> str:
    """Escapes text for a cell of a Markdown table; in backticks only the bar is escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    shown = [part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts]
    return "".join(shown).replace("|", "\\|")


if __name__ == "__main__":
    print(to_markdown(), end="")
