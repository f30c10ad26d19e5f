"""Reads overrides from text, and writes them so that Hydra and a shell leave their values unchanged."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from prefopt.process import terminal
from prefopt.process.errors import SHOWN, UserError, shorten

MAX_DEPTH = 20
FORM = "Write overrides as group=option or group.setting=value"
QUOTED_KEY = re.compile(r"""[{,]\s*(["'])(?:(?!\1).)*\1\s*:""")
"""A key of a table in quotes, which Hydra's grammar does not have."""
TYPED_WORDS = ("null", "true", "false", "inf", "nan")
"""Words that Hydra's grammar does not read as text."""


def parse(overrides: Sequence[str]) -> list[Override]:
    """Reads overrides by Hydra's grammar.

    Raises:
        UserError: A line is not an override; the message says how to type it.
    """
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            (override,) = parser.parse_overrides([line])
        except (HydraException, RecursionError, ValueError) as error:  # too deep; an integer of thousands of digits
            raise _unreadable(line, error) from error
        if not override.is_sweep_override() and _is_deeper(override.value(), MAX_DEPTH):
            raise UserError(f"{shorten(line)}: holds lists or dicts in one another, more than {MAX_DEPTH} deep.")
        parsed.append(override)
    return parsed


def _is_deeper(value: object, levels: int) -> bool:
    """True for lists and dicts with more than `levels` levels: code that recurses into them could fail."""
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def quote(text: str) -> str:
    """Quotes any text as one value in Hydra's grammar."""
    mark = "'" if '"' in text else '"'
    escaped = re.sub(rf"(\\*)({mark}|\Z)", lambda found: 2 * found[1] + (f"\\{mark}" if found[2] else ""), text)
    return f"{mark}{escaped}{mark}"


def assign(key: str, value: str) -> str:
    """An override that sets a setting to exactly this text, quoted for Hydra's grammar."""
    return f"{key}={_literal(value)}"


def typed(key: str, value: object) -> str:
    """An override as it is typed in a shell, such as `'data.train="a=b.jsonl"'`; for messages.

    Args:
        key: The setting, with a `+` before it if needed.
        value: Text, a number, a boolean, None, or a list or dict of these.
    """
    return terminal.quote(f"{key}={_literal(value)}")


def _literal(value: object) -> str:
    if isinstance(value, str):
        is_word = re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./-]*", value) and value.lower() not in TYPED_WORDS
        plain = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # else OmegaConf would read a reference
        return value if is_word else quote(plain)
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_literal(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_overrides(arguments: Sequence[str]) -> list[str]:
    """Returns overrides; arguments that are none are files of training data.

    Raises:
        UserError: There are files, and `data.train` as well.
    """
    files = [each for each in arguments if _is_file(each)]
    given = [each for each in arguments if each not in files]
    if not files:
        return given
    if any(each.startswith("data.train=") for each in given):
        raise UserError(f"{files[0]}: data.train is given too. Name the training data once.")
    if len(files) == 1:
        return ["data=files", assign("data.train", files[0]), *given]
    quoted = ",".join(assign("", each).removeprefix("=") for each in files)
    return ["data=files", f"data.train=[{quoted}]", *given]


def _is_file(argument: str) -> bool:
    """Returns whether an argument names data: there is such a path, or it cannot be an override."""
    return os.path.exists(os.path.expanduser(argument)) or ("=" not in argument and argument[:1] not in ("+", "~"))


def _unreadable(line: str, error: Exception) -> UserError:
    """The error of a line that Hydra's grammar refuses: what is wrong, and how to type it instead."""
    name, equals, value = line.partition("=")
    if not equals or not re.fullmatch(r"[~+]*[\w$@/.:-]*", name, re.ASCII):
        if not equals and os.path.isfile(os.path.expanduser(line)):
            return UserError(f"{shorten(line)}: a file is no override. Type data=files {typed('data.train', line)}.")
        form = f"{FORM}; the name of a setting has letters, digits, _ and dots"
        return UserError(f"{shorten(line)}: no override. {form}.")
    if QUOTED_KEY.search(value):
        return UserError(
            f"{shorten(line)}: a key in quotes cannot be typed. Write the setting into a file such as "
            "<folder>/experiment/mine.yaml, and take it with --config-dir <folder> +experiment=mine."
        )
    odd = sorted(set(re.findall(r"[^\w/\-\\+.$%*@?|:,\s\[\]{}()'\"]", value, re.ASCII)))
    instead = _mended(name, value.strip())
    remedy = f"In a shell, type {instead}" if instead else f"In a shell, type {typed('group.setting', 'a=b, c')}"
    if odd:
        return UserError(f"{shorten(line)}: a value with {' '.join(odd)} needs quotes that reach prefopt. {remedy}.")
    reason = shorten(str(error).splitlines()[0].rstrip("."))
    form = f"{FORM}, with every bracket and quote closed"
    return UserError(f"{shorten(line)}: no override ({reason}). {form}. If it is text: {remedy}.")


def _mended(name: str, value: str) -> str | None:
    """The override that was probably meant, as typed in a shell: a quoted list or text; None if it is too long."""
    return None if len(value) > SHOWN else typed(name, _meant(value))


def _meant(value: str) -> object:
    """The text, or the list of texts and lists, that a value without quotes probably means."""
    value = value.strip()
    if not re.fullmatch(r"\[.*\]", value):
        return value.strip("'\"")
    items, depth = [""], 0
    for letter in value[1:-1]:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [_meant(item) for item in items] if items != [""] else []
