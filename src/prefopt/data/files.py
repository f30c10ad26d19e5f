"""Reads rows from files, `datasets` folders and the hub, each with its place for error messages."""

import glob
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.config.overrides import typed
from prefopt.data.arrow import OnBad, folder_rows, hub_rows, parquet_rows
from prefopt.data.delimited import delimited_rows
from prefopt.data.lines import read_lines
from prefopt.data.strict_json import JSONError, parse_row, parse_rows
from prefopt.data.values import RowError, describe
from prefopt.data.wrapped import flatten, read_wrapped
from prefopt.process.errors import UserError, explained
from prefopt.process.paths import describe_missing, resolve

HUB = "hub:"
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the data. Fetch them with: git lfs pull",
    b"PAR1": "Parquet data. Name the file .parquet",
    b"ARROW1": "Arrow data. Save them with datasets' save_to_disk, or as Parquet",
    b"PK\x03\x04": "a zip archive. Unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd. Unpack it with: unzstd",
    b"BZh": "packed with bzip2. Unpack it with: bunzip2",
    b"\xfd7zXZ\x00": "packed with xz. Unpack it with: unxz",
    b"\xff\xfe": "text in UTF-16. Save the file as UTF-8",
    b"\xfe\xff": "text in UTF-16. Save the file as UTF-8",
    b"<!DOCTYPE": "a web page, not the data. Download the file itself",
    b"<html": "a web page, not the data. Download the file itself",
}
"""Beginnings of files whose content is not what their name says, each with an explanation and a remedy."""
Row = dict[str, Any]


def refuse(place: str, found: str) -> None:
    """Refuses the first row that cannot be read.

    Raises:
        UserError: Always.
    """
    raise UserError(f"{place}: {found}")


class Unreadable(NamedTuple):
    """In the place of a row that cannot be read: what is wrong with it."""

    found: str


Raw = Any
"""A row as it comes from its file: JSON text that is not parsed yet, an object, or an `Unreadable`."""


def iter_rows(spec: object, on_bad: OnBad = refuse) -> Iterator[tuple[Row, str]]:
    """Yields (row, place) for each row of `spec`; the place is `path:line`, or `path:row N` if a file has no lines.

    A JSON row with a repeated key is a `RepeatingRow`: the caller decides whether a column that it reads is affected.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.
        on_bad: Called for each row that cannot be read, but after which its file goes on: a line that is no JSON, a
            row that is no object, a row of a table with more or fewer cells than the header. It is left out then.

    Raises:
        UserError: A file is missing, empty, unreadable or of an unknown type; or by `on_bad`.
    """
    for raw, place in iter_raw(spec):
        try:
            row = parse_raw(raw)
        except RowError as error:
            on_bad(place, str(error))
            continue
        yield row, place


def iter_raw(spec: object) -> Iterator[tuple[Raw, str]]:
    """Yields (row, place) for each row of `spec`, which `parse_raw` reads: in any order, and in any process.

    Args:
        spec: As for `iter_rows`.

    Raises:
        UserError: A file is missing, empty, unreadable or of an unknown type.
    """
    specs = spec if isinstance(spec, (list, tuple)) else [spec]
    if not specs:
        raise UserError("the list of data files is empty. Name at least one file.")
    for item in specs:
        if not isinstance(item, (str, Path)) or not str(item):
            raise UserError(f"a data file must be given by its path, found {describe(item)}.")
        text = str(item)
        if text.startswith(HUB):
            yield from _require_rows(partial(hub_rows, text, text.removeprefix(HUB)), text)
            continue
        for path in find_files(text):
            yield from _require_rows(partial(_path_rows, path), str(path))


def parse_raw(raw: Raw) -> Row:
    """Returns a row that `iter_raw` has yielded.

    Raises:
        RowError: It cannot be read, or is no object.
    """
    if isinstance(raw, Unreadable):
        raise RowError(raw.found)
    try:
        row = parse_row(raw) if isinstance(raw, str) else raw
    except JSONError as error:
        hint = " Each line must hold one JSON object, or the file one list of them." if error.is_syntax else ""
        raise RowError(f"{error}.{hint}") from error
    if not isinstance(row, dict):
        raise RowError(_no_object(row))
    return row


def _no_object(row: object) -> str:
    return f"a row must be an object with named fields, found {describe(row)}."


def find_place(spec: object, number: int) -> str:
    """Returns the place of a row, good or bad, by its number from 0 over all files of `spec`, which must have it."""
    places: list[str] = []
    for _, place in iter_rows(spec, lambda bad_place, _: places.append(bad_place)):
        places.append(place)
        if len(places) > number:
            break
    return places[number]


def find_numbers(spec: object, places: Collection[str]) -> list[int]:
    """Returns the numbers of the rows, good or bad, that stand at `places`: from 0 over all files of `spec`."""
    seen: list[str] = []
    for _, place in iter_rows(spec, lambda bad_place, _: seen.append(bad_place)):
        seen.append(place)
    return [number for number, place in enumerate(seen) if place in places]


def find_files(spec: str) -> list[Path]:
    """Returns the path of `spec`, or all paths that match it as a glob, sorted.

    Raises:
        UserError: Nothing is there, or access is denied.
    """
    path = resolve(spec)
    with explained(path):
        str(path).encode()  # raises unless the path is valid UTF-8, which places of rows must be
        if path.exists():
            return [path]
        if glob.has_magic(spec):
            paths = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not paths:
                raise UserError(f"{spec}: no file matches this pattern in {Path.cwd()}.")
            return paths
        raise UserError(f"{spec}: {describe_missing(path, 'file')}")


def refuse_repeated(specs: Iterable[object], setting: str) -> None:
    """Refuses data in which a file is named twice, also by a pattern, a link, or another spelling of its path.

    Its rows would weigh twice, without a word about it.

    Args:
        specs: Files, patterns, folders and data sets of the hub, as for `iter_rows`.
        setting: The setting that names them, for the error.

    Raises:
        UserError: A file is named twice, or does not exist.
    """
    seen: dict[object, str] = {}
    for spec in specs:
        name = str(spec)
        for path in [name] if name.startswith(HUB) else find_files(name):
            key = path if isinstance(path, str) else path.resolve()
            if key in seen:
                names = f"by {name}" if seen[key] == name else f"by {seen[key]} and by {name}"
                remedy = "Name it once"
                if setting == "data.train":
                    remedy += f"; to see its rows twice an epoch: {typed(setting, [{'path': str(path), 'weight': 2}])}"
                raise UserError(f"{setting}: {path} is named twice, {names}. {remedy}")
            seen[key] = name


def _require_rows(read: Callable[[OnBad], Iterator[tuple[Raw, str]]], name: str) -> Iterator[tuple[Raw, str]]:
    """Yields the rows that `read` yields, and in their places those that it cannot read.

    Raises:
        UserError: There is no row, good or bad, or the system reports an error; it names `name`.
    """
    is_empty = True
    bad: list[tuple[Unreadable, str]] = []
    with explained(name):
        for row in read(lambda place, found: bad.append((Unreadable(found), place))):
            is_empty = False
            if bad:
                yield from bad
                bad.clear()
            yield row
        yield from bad
    if is_empty and not bad:
        raise UserError(f"{name}: holds no rows. Give a file with at least one.")


def _path_rows(path: Path, on_bad: OnBad) -> Iterator[tuple[Raw, str]]:
    if path.is_dir():
        yield from folder_rows(path, on_bad)
        return
    readers = {
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
        ".json": _json_rows,
        ".csv": delimited_rows,
        ".tsv": delimited_rows,
    }
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in readers and not name.endswith(".parquet"):
        allowed = f"{' '.join(readers)} (also .gz) .parquet"
        raise UserError(f"{path}: unsupported file type. Allowed: {allowed}, or a `datasets` folder.")
    if not path.is_file():
        raise UserError(f"{path}: no file, but a pipe or a device, which cannot be read twice. Write it to a file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes).")
    with path.open("rb") as file:
        _refuse_foreign(file.read(64), path)
    yield from readers.get(suffix, parquet_rows)(path, on_bad)


def _refuse_foreign(start: bytes, path: Path) -> None:
    """Refuses a file whose first bytes are of another type, such as a Git LFS pointer or a web page."""
    is_parquet = path.name.lower().endswith(".parquet")
    for mark, what in FOREIGN.items():
        if start.lstrip().startswith(mark) and not (is_parquet and mark == b"PAR1"):
            raise UserError(f"{path}: holds {what}.")


def _json_rows(path: Path, on_bad: OnBad) -> Iterator[tuple[Raw, str]]:
    """Yields the lines of JSON lines, the objects of one JSON list, or those that are wrapped (see `wrapped`).

    The first line decides which of them the file is.
    """
    wrapped = read_wrapped(read_lines(path), path.stat().st_size)
    if wrapped is not None:
        yield from ((_parsed(row), f"{path}:row {number}") for number, row in enumerate(wrapped, start=1))
        return
    is_first = True
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        if is_first and line.lstrip().startswith("["):
            yield from _list_rows(path, "\n" * (number - 1) + line + "".join(lines))
            return
        is_first = False
        yield line, f"{path}:{number}"


def _parsed(row: object) -> Raw:
    return row if isinstance(row, dict) else Unreadable(_no_object(row))


def _list_rows(path: Path, text: str) -> Iterator[tuple[Raw, str]]:
    number = 0
    try:
        rows = (row for item in parse_rows(text) for row in flatten(item))
        for number, row in enumerate(rows, start=1):
            yield _parsed(row), f"{path}:row {number}"
    except JSONError as error:
        raise UserError(f"{path}:{error.line}: {error}, in row {number + 1} of the list.") from error
