"""Records in a temporary file instead of memory: a sequence that makes its records when they are looked at."""

import json
import marshal
import os
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.process.errors import explained
from prefopt.process.parallel import map_in_processes, processes_for

Item = TypeVar("Item", bound=Record)
Result = TypeVar("Result")

ROOM = "Let TMPDIR name a folder with more room: records and token ids take twice the size of the files there."
"""What to do when the temporary files cannot be written."""
FLUSH_BYTES = 2**20
"""Packed records that wait in memory before they are written."""
READ_BYTES = 2**20
"""Most bytes of the file that are read at once, unless one record has more."""
PART_ROWS = 2000
"""Records that are worked on together."""
PICKLED = 0x80
"""First byte of a record that `marshal` cannot pack: it holds a date or a decimal, as Parquet files do."""

CLASSES: tuple[type[Record], ...] = (PreferencePair, SFTExample)
_NAMES = {kind: tuple(each.name for each in fields(kind)) for kind in CLASSES}
_GETTERS = {kind: attrgetter(*names) for kind, names in _NAMES.items()}


def pack(record: Record) -> bytes:
    """Returns a record as bytes, from which `unpack` makes an equal one."""
    kind = type(record)
    content = (CLASSES.index(kind), *_GETTERS[kind](record))
    try:
        return marshal.dumps(content, 2)  # version 2 keeps no references, which would take time to find
    except ValueError:
        return pickle.dumps(content, protocol=5)


def unpack(packed: bytes | memoryview) -> Any:
    """Returns the record that `pack` got."""
    number, *content = pickle.loads(packed) if packed[0] == PICKLED else marshal.loads(packed)
    if number == 0:
        return PreferencePair(*content)
    return SFTExample(**dict(zip(_NAMES[SFTExample], content, strict=True)))


class _Store:
    """A file without a name, which ends with this object, and where each record begins in it."""

    def __init__(self) -> None:
        with explained(tempfile.gettempdir(), "written", ROOM):
            self._file = tempfile.TemporaryFile(prefix="prefopt-")  # noqa: SIM115  (it ends with this object)
        self._waiting: list[bytes] = []
        self._num_waiting = 0
        self.offsets = array("q", [0])

    def append(self, packed: bytes) -> None:
        self._waiting.append(packed)
        self._num_waiting += len(packed)
        self.offsets.append(self.offsets[-1] + len(packed))
        if self._num_waiting >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        with explained(tempfile.gettempdir(), "written", ROOM):
            self._file.write(b"".join(self._waiting))
            self._file.flush()
        self._waiting, self._num_waiting = [], 0

    def read(self, start: int, end: int) -> memoryview:
        """Returns the bytes of the file from `start` to `end`; threads and forks may read at the same time."""
        return memoryview(os.pread(self._file.fileno(), end - start, start))


class Table(Sequence[Item], Generic[Item]):
    """Records that lie in a temporary file. It cannot be changed; parts of it and other orders share the file.

    Two looks at one row give two equal records, not the same object. Iterating holds a few of them at a time.
    """

    def __init__(self, store: _Store, rows: NDArray[np.int64]) -> None:
        self._store = store
        self._rows = rows

    @classmethod
    def of(cls, records: Iterable[Item]) -> "Table[Item]":
        """Returns a table of some records, which are taken one by one; a table is returned as it is."""
        if isinstance(records, Table):
            return records
        writer = TableWriter[Item]()
        for record in records:
            writer.append(record)
        return writer.table()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> "Table[Item]": ...
    def __getitem__(self, at: int | slice) -> "Item | Table[Item]":
        if isinstance(at, slice):
            return Table(self._store, self._rows[at])
        row = int(self._rows[at])
        found: Item = unpack(self._store.read(self._store.offsets[row], self._store.offsets[row + 1]))
        return found

    def __iter__(self) -> Iterator[Item]:
        for packed in self.iter_packed():
            yield unpack(packed)

    def iter_packed(self) -> Iterator[memoryview]:
        """Yields each record as `unpack` takes it."""
        offsets = self._store.offsets
        held, begin = memoryview(b""), 0  # a piece of the file, and where it begins
        last = len(offsets) - 1
        for row in self._rows.tolist():
            start, end = offsets[row], offsets[row + 1]
            if start < begin or end > begin + len(held):
                held, begin = self._store.read(start, max(end, min(start + READ_BYTES, offsets[last]))), start
            yield held[start - begin : end - begin]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Table({list(self[:3])}{'' if len(self) <= 3 else f' and {len(self) - 3} more'})"

    def map_parts(self, work: "Callable[[Table[Item]], Result]", *, doing: str) -> Iterator[Result]:
        """Yields `work(part)` for each `PART_ROWS` records, in order, in several processes if there are many.

        Args:
            work: As for `map_in_processes`.
            doing: What it is called in an error.
        """
        starts = range(0, len(self), PART_ROWS)
        return map_in_processes(
            lambda start: work(self[start : start + PART_ROWS]),
            starts,
            num_processes=processes_for(len(starts)),
            doing=doing,
        )

    def select(self, rows: Iterable[int] | NDArray[Any]) -> "Table[Item]":
        """Returns the records at some places of this table, in that order; a boolean array says which are kept."""
        return Table(
            self._store, self._rows[rows if isinstance(rows, np.ndarray) else np.asarray([*rows], dtype=np.int64)]
        )


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSON lines for `read_written`; no file is left if JSON cannot hold one of them."""
    try:
        with path.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
    except TypeError:
        path.unlink()


def read_written(path: Path, kind: type[Item]) -> Table[Item]:
    """Returns the records that `write_records` has written."""
    with explained(path), path.open(encoding="ascii") as file:
        return Table.of(kind(**json.loads(line)) for line in file)


class TableWriter(Generic[Item]):
    """Takes records one by one for a `Table`."""

    def __init__(self) -> None:
        self._store = _Store()

    def append(self, record: Item) -> None:
        """Adds a record; it is packed at once."""
        self._store.append(pack(record))

    def extend_packed(self, packed: Iterable[bytes]) -> None:
        """Adds records that `pack` has made."""
        for each in packed:
            self._store.append(each)

    def __len__(self) -> int:
        return len(self._store.offsets) - 1

    def table(self) -> Table[Item]:
        """Returns the table of all records; none can be added afterwards."""
        self._store.flush()
        return Table(self._store, np.arange(len(self), dtype=np.int64))
