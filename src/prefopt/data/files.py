"""Rows from files, `datasets` folders and the hub, each with the place that an error message names."""

import csv
import difflib
import glob
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefopt.data.messages import describe
from prefopt.errors import UserError
from prefopt.paths import resolve

HUB = "hub:"
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")

Row = dict[str, Any]


def iter_rows(spec: Any) -> Iterator[tuple[Row, str]]:
    """Yields each row of `spec` with its place: `path:line`, or `path:row N` where a file has no lines.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.

    Raises:
        UserError: A file is missing, empty, unreadable or of an unknown type, or a row is not an object.
    """
    specs = spec if isinstance(spec, (list, tuple)) else [spec]
    if not specs:
        raise UserError("the list of data files is empty. Name at least one file.")
    for item in specs:
        if not isinstance(item, (str, Path)) or not str(item):
            raise UserError(f"a data file must be given by its path, found {describe(item)}.")
        text = str(item)
        if text.startswith(HUB):
            yield from _require_rows(_hub_rows(text), text)
            continue
        for path in find_files(text):
            yield from _require_rows(_path_rows(path), str(path))


def find_files(spec: str) -> list[Path]:
    """Returns the path of `spec`, or those that match it as a glob, sorted.

    Raises:
        UserError: Nothing is there.
    """
    path = resolve(spec)
    if path.exists():
        return [path]
    if glob.has_magic(spec):
        paths = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not paths:
            raise UserError(f"{spec}: no file matches this pattern in {Path.cwd()}.")
        return paths
    siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise UserError(f"{spec}: no such file (looked for {path.absolute()}).{hint}")


def _require_rows(rows: Iterator[tuple[Row, str]], name: str) -> Iterator[tuple[Row, str]]:
    is_empty = True
    for row, source in rows:
        is_empty = False
        if not isinstance(row, dict):
            raise UserError(f"{source}: a row must be an object with named fields, found {describe(row)}.")
        yield row, source
    if is_empty:
        raise UserError(f"{name}: holds no rows. Give a file with at least one.")


def _path_rows(path: Path) -> Iterator[tuple[Row, str]]:
    if path.is_dir():
        return _folder_rows(path)
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    name = path.name.lower()
    stem = name.removesuffix(".gz")
    suffix = Path(stem).suffix
    if suffix not in readers or (suffix == ".parquet" and stem != name):
        raise UserError(f"{path}: unsupported file type. Allowed: {' '.join(SUFFIXES)}, or a `datasets` folder.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes).")
    return readers[suffix](path)


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        try:
            yield from file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a complete gzip file: {error}. Write or copy it again.") from error


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = raw[error.start : error.start + 1].hex()
        raise UserError(
            f"{place}: not valid UTF-8: byte 0x{found} at position {error.start}. Save the file as UTF-8."
        ) from error


def _jsonl_rows(path: Path) -> Iterator[tuple[Row, str]]:
    for number, raw in enumerate(_lines(path), start=1):
        source = f"{path}:{number}"
        line = _decode(raw, source)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{source}: invalid JSON: {error.msg} at column {error.colno}. Each line must hold one JSON object."
            ) from error
        yield row, source


def _json_rows(path: Path) -> Iterator[tuple[Row, str]]:
    text = "".join(_decode(raw, f"{path}:{number}") for number, raw in enumerate(_lines(path), start=1))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One object per line? Name the file .jsonl." if error.msg == "Extra data" else ""
        raise UserError(f"{path}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}.{hint}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: a .json file must hold a list of objects, found {describe(rows)}.")
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}:row {number}"


def _csv_rows(path: Path) -> Iterator[tuple[Row, str]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses a completion of more than 128 KiB
    text = "".join(_decode(raw, f"{path}:{number}") for number, raw in enumerate(_lines(path), start=1))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                columns = len(reader.fieldnames or [])
                raise UserError(f"{path}:row {number}: the header has {columns} columns, this row has another number.")
            yield row, f"{path}:row {number}"
    except csv.Error as error:
        raise UserError(f"{path}:row {number + 1}: invalid CSV: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[Row, str]]:
    # Imported here because only this file type needs it and it is slow to import.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}.") from error
    number = 0
    with file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path}:row {number}"


def _folder_rows(path: Path) -> Iterator[tuple[Row, str]]:
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise UserError(f"{path}: holds several splits. Name one: {', '.join(str(path / split) for split in splits)}.")
    if not (path / "state.json").exists():
        raise UserError(f"{path}: a folder, but not one of `datasets`. For its files, give a glob: {path}/*.jsonl.")
    import datasets  # slow to import

    for number, row in enumerate(datasets.load_from_disk(str(path)), start=1):
        yield dict(row), f"{path}:row {number}"


def _hub_rows(spec: str) -> Iterator[tuple[Row, str]]:
    import datasets  # slow to import

    name, _, split = spec.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        raise UserError(f"{spec}: the hub has no such data set or split, or cannot be reached: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield dict(row), f"{spec}:row {number}"
