"""Rows of Arrow tables: Parquet files, `datasets` folders and data sets of the hub."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.overrides import typed
from prefopt.data.strict_json import JSONError, parse
from prefopt.data.values import RowError, show_name
from prefopt.process.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_ROWS = 1000
"""Rows of a Parquet file that are converted to Python objects at once."""

Row = dict[str, Any]
OnBad = Callable[[str, str], None]
"""Is called with the place of a row that cannot be read, and what is wrong with it."""


def parquet_rows(path: Path, on_bad: OnBad) -> Iterator[tuple[Row, str]]:
    """Yields (row, place) for each row of a Parquet file; the place is `path:row N`, for error messages.

    Raises:
        UserError: The file is damaged, or holds a column twice.
    """
    # Imported here because only this file type needs it and it is slow to import.
    import pyarrow.parquet as pq

    number = 0
    again = "Fetch or write the file again."
    with _foreign_code(f"{path}: not a readable Parquet file", again), pq.ParquetFile(path) as file:
        strip = _row_stripper(file.schema_arrow, str(path), read_json=parse)
        for batch in file.iter_batches(BATCH_ROWS):
            with _foreign_code(f"{path}:rows {number + 1} to {number + len(batch)}: not readable", again):
                rows = batch.to_pylist()
            for row in rows:
                number += 1
                place = f"{path}:row {number}"
                if (restored := strip(row, place, on_bad)) is not None:
                    yield restored, place


def folder_rows(path: Path, on_bad: OnBad) -> Iterator[tuple[Row, str]]:
    """Yields (row, place) for each row of a folder that `datasets.save_to_disk` wrote.

    Raises:
        UserError: The folder was not written by `datasets`, is damaged, or holds several splits.
    """
    not_readable = (f"{path}: not a readable folder of `datasets`", "Fetch it again, or write it with save_to_disk.")
    if (path / "dataset_dict.json").exists():
        with _foreign_code(*not_readable):
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            named = ", ".join(str(path / split) for split in splits)
        raise UserError(f"{path}: holds several splits. Name one: {named}.")
    if not (path / "state.json").exists():
        glob = typed("data.train", f"{path}/*.jsonl")
        raise UserError(f"{path}: a folder, but not one of `datasets`. For its files, give a pattern, such as {glob}.")
    with _foreign_code(*not_readable):
        import datasets  # slow to import

        yield from _dataset_rows(datasets.load_from_disk(str(path)), str(path), on_bad)


def hub_rows(spec: str, address: str, on_bad: OnBad) -> Iterator[tuple[Row, str]]:
    """Yields (row, place) for each row of a data set on the Hugging Face hub.

    Args:
        spec: The setting as the user wrote it, for places and errors.
        address: `<id>` or `<id>:<split>`; the default split is `train`.
        on_bad: Called for a row that cannot be read.

    Raises:
        UserError: There is no such data set or split, or it cannot be loaded.
    """
    import datasets  # slow to import

    name, _, split = address.partition(":")
    if not name:
        raise UserError(f"{spec}: names no data set. Write hub:<owner>/<name>, or hub:<owner>/<name>:<split>.")
    check = "Check the name, the split and the network."
    with _foreign_code(f"{spec}: the hub has no such data set or split, or cannot be reached", check):
        rows = datasets.load_dataset(name, split=split or "train")
    with _foreign_code(f"{spec}: not readable", "Fetch it again."):
        yield from _dataset_rows(rows, spec, on_bad)


def _dataset_rows(dataset: "Dataset", name: str, on_bad: OnBad) -> Iterator[tuple[Row, str]]:
    strip = _row_stripper(dataset.features.arrow_schema, name, read_json=_same)
    for number, row in enumerate(dataset, start=1):
        place = f"{name}:row {number}"
        if (restored := strip(row, place, on_bad)) is not None:
            yield restored, place


@contextmanager
def _foreign_code(what: str, remedy: str) -> Iterator[None]:
    """Turns any error from Arrow or `datasets` into a `UserError`: `what`, the reason, `remedy`.

    It catches every `Exception`, since a damaged file makes these libraries raise errors of many types.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {first_line(error).rstrip('.')}. {remedy}") from error


Strip = Callable[[Any], Any]


def _row_stripper(schema: "pa.Schema", name: str, *, read_json: Strip) -> Callable[[Row, str, OnBad], Row | None]:
    """Returns a function of (row, place, on_bad) that restores the row as it was before it became Arrow.

    Arrow gives all objects of a column the same keys: `{"a": 1}` beside `{"b": 2}` comes back as
    `{"a": 1, "b": None}`. Keys with a null value are removed, at every depth; nulls in lists and maps are kept. A map,
    which Arrow returns as a list of (key, value), becomes an object.

    Args:
        schema: The table's Arrow schema.
        name: The table's name, for errors.
        read_json: Parses a value of Arrow's JSON type.

    Raises:
        UserError: A column name occurs twice.
    """
    repeated = next((column for column, count in Counter(schema.names).items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"{name}: the column '{show_name(repeated)}' is there twice. Rename or remove one.")
    strips = {field.name: strip for field in schema if (strip := _stripper(field.type, read_json)) is not None}

    def stripped(row: Row, place: str, on_bad: OnBad) -> Row | None:
        try:
            return {key: strips[key](value) if key in strips else value for key, value in row.items()}
        except (RowError, JSONError) as error:
            on_bad(place, str(error))
            return None

    return stripped if strips else lambda row, place, on_bad: row


def _stripper(type: "pa.DataType", read_json: Strip) -> Strip | None:
    """Returns a function that restores values of an Arrow type as they were written; None if nothing has changed."""
    import pyarrow.types as kinds

    if kinds.is_struct(type):
        fields = {field.name: _stripper(field.type, read_json) or _same for field in type}
        return lambda value: value and {key: fields[key](item) for key, item in value.items() if item is not None}
    if kinds.is_map(type):
        read_item = _stripper(type.item_type, read_json) or _same
        return lambda pairs: None if pairs is None else _object([(str(key), read_item(item)) for key, item in pairs])
    if any(is_list(type) for is_list in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)):
        strip = _stripper(type.value_type, read_json)
        return None if strip is None else lambda value: value and [strip(item) for item in value]
    if getattr(type, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else read_json(value)
    return None


def _object(pairs: list[tuple[str, object]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowError(f"a map holds the key '{show_name(repeated)}' twice. Rename or remove one.")
    return made


def _same(value: object) -> object:
    return value
