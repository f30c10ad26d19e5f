"""The ends of files that others are writing: what is whole counts, what is cut off does not."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (1 << 12, 1 << 16)
"""How far back `read_last` looks, bytes: the second only where the first was not enough."""
LOG_BYTES = 1 << 16
LARGEST = 1e300

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)
LOOKS_WRONG = re.compile(
    r"Error\b|Exception\b|\berror:|Segmentation fault|Bus error|\bKilled\b|\bpreflight: (?!.*: fit)", re.ASCII
)
ECHOES = ("srun: error:", "torch.distributed.elastic", "torch/distributed/elastic", "ChildFailedError")
"""In lines that tell that another process failed, whose own words say more."""


def read_end(path: Path, num_bytes: int) -> tuple[bytes, bool]:
    """The last `num_bytes` of a file, and whether that is all of it; empty if it cannot be read.

    What is not all of a file begins after its first line break: the line before it may be cut.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start = max(0, os.fstat(file.fileno()).st_size - num_bytes)
            file.seek(start)
            content = file.read()
    except OSError:
        return b"", True
    return (content.partition(b"\n")[2], False) if start else (content, True)


def read_last(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The last object of a JSON-lines file that is wanted; None if there is none near its end."""
    for size in SIZES:
        content, is_whole = read_end(path, size)
        for line in reversed(content.split(b"\n")):
            value = _parse(line)
            if value is not None and wanted(value):
                return value
        if is_whole:
            break
    return None


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file without the lines that are damaged; empty if there is no such file."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [value for line in content.split(b"\n") if (value := _parse(line)) is not None]


def find_error(log: Path) -> str:
    """The last line of a log that tells of an error, rather one that says which; empty if there is none."""
    wrong = [line for line in _read_words(log) if LOOKS_WRONG.search(line)]
    telling = [line for line in wrong if not any(echo in line for echo in ECHOES)]
    return (telling or wrong or [""])[-1]


def find_last_line(log: Path) -> str:
    """The last line of a log that says something; empty if there is none."""
    return (_read_words(log) or [""])[-1]


def _read_words(log: Path) -> list[str]:
    """The last lines of a log, without colours and without what progress bars have overwritten."""
    text = ANSI.sub("", read_end(log, LOG_BYTES)[0].decode("utf-8", "replace"))
    return [line.strip() for part in text.split("\n") for line in part.split("\r") if line.strip()]


def as_count(value: Any) -> int | None:
    """A number of steps or attempts; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def as_number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if is_number else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line else None
    except ValueError:  # cut off, damaged, or no UTF-8
        return None
    return value if isinstance(value, dict) else None
