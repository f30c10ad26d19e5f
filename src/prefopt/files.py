"""Writing files so that a reader sees the old content or the new, never a part."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COPY_BYTES = 2**30
"""What the system is asked to copy in one call."""
PARTIAL = ".partial"
"""Ending of a file that is being written."""


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text` in one step, on disk before it returns."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` with `content` in one step, on disk before it returns; writers at the same time do not mix."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copies a file; where the file system can, both share their blocks on the disk until one is changed."""
    try:
        with source.open("rb") as read, target.open("wb") as written:
            while os.copy_file_range(read.fileno(), written.fileno(), COPY_BYTES):
                pass
        is_whole = target.stat().st_size == source.stat().st_size  # some file systems end early without an error
    except (AttributeError, OSError):  # not on this system, or not on this file system
        is_whole = False
    if not is_whole:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` with `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds one object to a JSON-lines file; a last line cut by a kill is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file; a last line cut by a kill is left out.

    Raises:
        ValueError: Another line is no JSON, with file and line.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON object ({error}).") from error
