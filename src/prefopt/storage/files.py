"""Writes files so that a reader sees the old content or the new content, never a part of it; and reads them."""

import errno
import hashlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from prefopt.process.errors import UserError, explained
from prefopt.storage.reading import open_file, parse_json, read_file, read_text

COPY_BYTES = 2**30
"""Most bytes to copy in one system call."""
NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES})
"""Errors of fsync on a folder: the file system does not support it, or the folder may be written but not listed."""
TAIL_BYTES = (1 << 12, 1 << 16)
"""Bytes that are read from a file's end for its last line; the second number is tried if the first is too few."""
PARTIAL = ".partial"
"""Ending of a file that is being written."""


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text` atomically; it is on the disk when the function returns."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` with `content` atomically, on the disk when it returns; concurrent writers do not mix."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        bring_to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def bring_to_disk(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk, so that they survive a loss of power (fsync).

    Raises:
        OSError: It failed. A network file system that does not support this for folders is no error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC or not path.is_dir():
            raise


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def delete(path: Path) -> None:
    """Removes a file or a whole folder; for a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file; if the file system supports it, both share disk blocks until one is changed."""
    try:
        with source.open("rb") as read, target.open("wb") as written:
            while os.copy_file_range(read.fileno(), written.fileno(), COPY_BYTES):
                pass
        is_whole = target.stat().st_size == source.stat().st_size  # some file systems stop early without an error
    except (AttributeError, OSError):  # not on this system, or not on this file system
        is_whole = False
    if not is_whole:
        shutil.copyfile(source, target)


def write_json(path: Path, value: object) -> None:
    """Replaces `path` with `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def overwrite_in_place(path: Path, text: str) -> None:
    """Overwrites a small file in place, for a full disk: a file of less than one block needs no new block.

    Not atomic: a reader may see a part of the text.
    """
    with path.open("r+b") as file:
        file.write(text.encode("utf-8"))
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file; empty if there is no file.

    Raises:
        UserError: The file cannot be read or holds no JSON object; the message ends with `remedy`.
    """
    try:
        with explained(path, remedy=remedy):
            value = parse_json(read_text(path), parse_constant=_refuse_constant)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (holds no object). {remedy}")
    return value


def _refuse_constant(name: str) -> None:
    """Refuses NaN and infinity, which are no JSON and could not be written again."""
    raise ValueError(f"found {name}, which is no JSON")


def append_line(path: Path, record: dict[str, object]) -> None:
    """Appends one object to a JSON-lines file with `append_text`; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_text(path, json.dumps(record, ensure_ascii=False) + "\n")


def append_text(path: Path, lines: str) -> None:
    """Appends whole lines to a file, on the disk when it returns. A last line that a kill cut off is removed first.

    Raises:
        OSError: The lines could not be written; the file is as before, without a cut last line.
    """
    content = lines.encode("utf-8")
    with path.open("a+b", buffering=0) as file:
        end = _end_of_last_line(file)
        try:
            file.truncate(end)
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def _end_of_last_line(file: IO[bytes]) -> int:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - TAIL_BYTES[0])
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_lines(
    path: Path, find_wrong: Callable[[dict[str, Any]], str | None] = lambda value: None
) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file; a last line that a kill cut off is left out.

    Args:
        path: The file.
        find_wrong: Returns what is wrong with an object; None if nothing is.

    Raises:
        UserError: The file cannot be read, or a line holds no object or a wrong one; names file and line.
    """
    with explained(path):
        lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                continue
            raise _refuse_line(path, number, f"not a JSON object, {error}") from error
        wrong = find_wrong(value) if isinstance(value, dict) else f"not a JSON object, found {line[:40]}"
        if wrong is not None:
            raise _refuse_line(path, number, wrong)
        yield value


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, without damaged lines; empty if the file cannot be read."""
    try:
        content = read_file(path)
    except OSError:
        return []
    return [value for line in content.split(b"\n") if (value := _parse(line)) is not None]


def read_last(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """Returns the last object of a JSON-lines file for which `wanted` is true; None if there is none near its end."""
    for size in TAIL_BYTES:
        content, is_whole = read_end(path, size)
        for line in reversed(content.split(b"\n")):
            value = _parse(line)
            if value is not None and wanted(value):
                return value
        if is_whole:
            break
    return None


def read_end(path: Path, num_bytes: int) -> tuple[bytes, bool]:
    """Returns the last `num_bytes` of a file, and whether that is the whole file; empty if it cannot be read.

    If it is not the whole file, the first line, which may be cut, is left out.
    """
    try:
        with open_file(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - num_bytes)
            file.seek(start)
            content = file.read()
    except OSError:
        return b"", True
    return (content.partition(b"\n")[2], False) if start else (content, True)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line) if line else None
    except ValueError:  # cut off, damaged, or not UTF-8
        return None
    return value if isinstance(value, dict) else None


def _refuse_line(path: Path, number: int, why: str) -> UserError:
    remove = shlex.join(["sed", "-i", f"{number}d", str(path)])
    return UserError(f"{path}:{number}: {why}. Mend that line, or take it out: {remove}")
