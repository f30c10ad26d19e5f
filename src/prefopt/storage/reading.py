"""Reads files of a run's folder of which nothing is known: a damaged one is an error of one kind, and never worse.

A disk, a user or another program may have put anything there: a pipe, on which opening waits for ever, or brackets
nested so deeply that a parser, or code that walks through the values, fails or takes the interpreter with it.
"""

import errno
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 100
"""Most levels of lists and objects in one another; prefopt's own files have fewer than ten."""
TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader, if PyYAML was built with it. A config.yaml takes 0.9 ms with it, 0.4 ms of looking at its events
before, and 7.4 ms with Python's."""


def open_file(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # else opening a pipe waits for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe or a device, and no file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path) -> bytes:
    """Returns the content of a regular file; errors as in `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path, errors: str = "strict") -> str:
    """Returns the content of a regular file as text, with `\\n` as line break.

    Raises:
        OSError: As in `open_file`.
        UnicodeDecodeError: It is no UTF-8, and `errors` is "strict".
    """
    with io.TextIOWrapper(open_file(path), encoding="utf-8", errors=errors) as file:
        return file.read()


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The text; bytes are UTF-8.
        parse_constant: As for `json.loads`.

    Raises:
        ValueError: It is no JSON, or is nested more than `MAX_DEPTH` deep.
    """
    try:
        value = json.loads(text, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    opening = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, opening)) > MAX_DEPTH and _is_deeper(value):  # type: ignore[arg-type]
        raise ValueError(TOO_DEEP)
    return value


def parse_yaml(text: str | bytes) -> Any:
    """Returns the value of a YAML text.

    Raises:
        ValueError: It is no YAML of plain values, is nested more than `MAX_DEPTH` deep, or has an alias (`*name`): a
            few lines of them stand for more values than memory holds, and a value may hold itself.
    """
    try:
        _check_events(text)
        return yaml.load(text, YAML_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:  # a tag whose value does not fit it
        raise ValueError(f"not YAML of plain values: {error}") from error


def _check_events(text: str | bytes) -> None:
    """Refuses what would end libyaml's loader, which calls itself for every level and then has no stack left."""
    depth = 0
    for event in yaml.parse(text, YAML_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise ValueError(f"holds an alias, *{event.anchor}")
        if depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)


def _is_deeper(value: Any) -> bool:
    """Returns whether a value has more than `MAX_DEPTH` levels; goes through it level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        items = (item for each in level for item in (each.values() if isinstance(each, dict) else each))
        level = [item for item in items if isinstance(item, dict | list)]
    return bool(level)
