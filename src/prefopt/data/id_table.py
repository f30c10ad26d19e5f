"""Rows of token ids on their way into one Arrow table, whose columns lie in files and not in memory."""

import mmap
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.data.table import ROOM
from prefopt.process.errors import explained

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MAX_VALUES = 2**31 - 1
"""Most ids, or bytes of text, of a column in one piece of the table: Arrow counts them with 32 bits."""


class Column(NamedTuple):
    """Values of some rows of a column one after the other, ids (int32) or text (UTF-8), and how many each row has."""

    values: bytes
    lengths: NDArray[np.int64]

    @classmethod
    def of_ids(cls, rows: Sequence[Sequence[int]]) -> "Column":
        """Returns the column of some rows of ids."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))  # twice as fast as `array`
        return cls(ids.tobytes(), lengths)

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "Column":
        """Returns the column of some texts."""
        packed = [text.encode() for text in texts]
        return cls(b"".join(packed), np.fromiter(map(len, packed), np.int64, len(packed)))


class _ColumnFile:
    """A column of all rows: the values in a file without a name, which ends with this object; their numbers here."""

    def __init__(self, name: str, item_bytes: int) -> None:
        self.name = name
        self.file = tempfile.TemporaryFile(prefix="prefopt-")  # noqa: SIM115
        self.item_bytes = item_bytes
        self.lengths: list[NDArray[np.int64]] = []

    def add(self, column: Column) -> None:
        self.file.write(column.values)
        self.lengths.append(column.lengths)

    def has_values(self) -> bool:
        return any(lengths.any() for lengths in self.lengths)


class IdTable:
    """Takes the rows of a data set chunk by chunk: columns of ids, and the column `source`.

    Args:
        columns: Names of the columns of ids.
        optional: Names of more columns of ids, which the data set lacks if no row has a value in any of them.
    """

    def __init__(self, columns: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.num_rows = 0
        self._optional = optional
        names = [*columns, *optional]
        with explained(tempfile.gettempdir(), "written", ROOM):
            self._columns = [*(_ColumnFile(name, 4) for name in names), _ColumnFile("source", 1)]

    def add(self, columns: Sequence[Column]) -> None:
        """Adds a chunk of rows: the id columns in order, then the places `path:line`; nothing for no rows."""
        if not columns:
            return
        with explained(tempfile.gettempdir(), "written", ROOM):
            for file, column in zip(self._columns, columns, strict=True):
                file.add(column)
        self.num_rows += len(columns[-1].lengths)

    def to_dataset(self) -> "Dataset":
        """Returns the rows as a `datasets.Dataset` whose values are memory-mapped; none can be added afterwards."""
        # Imported here because it is slow, and code that only reads records imports this module without need for it.
        import pyarrow as pa
        from datasets import Dataset

        with explained(tempfile.gettempdir(), "written", ROOM):
            for column in self._columns:
                column.file.flush()
            has_optional = any(each.has_values() for each in self._columns if each.name in self._optional)
            columns = [each for each in self._columns if has_optional or each.name not in self._optional]
            arrays = [_to_arrow(column) for column in columns]
        table = pa.table(arrays, names=[column.name for column in columns])
        return Dataset(table, fingerprint=uuid.uuid4().hex)  # else `datasets` pickles the whole table to name it


def _to_arrow(column: _ColumnFile) -> "pa.ChunkedArray":
    """Returns a column with its values where they are: in one piece, unless there are more than `MAX_VALUES`."""
    import pyarrow as pa

    lengths = np.concatenate([*column.lengths, np.zeros(0, np.int64)])
    ends = np.cumsum(lengths)
    is_text = column.item_bytes == 1
    kind = pa.string() if is_text else pa.list_(pa.int32())
    if not len(ends) or not ends[-1]:
        empty: object = "" if is_text else []
        return pa.chunked_array([pa.array([empty] * len(ends), kind)])
    whole = pa.py_buffer(mmap.mmap(column.file.fileno(), 0, access=mmap.ACCESS_READ))  # it outlives the file object
    pieces = []
    first, start = 0, 0  # row and value at which the piece begins
    while first < len(ends):
        last = int(np.searchsorted(ends, start + MAX_VALUES, side="right"))
        end = int(ends[last - 1])
        offsets = pa.py_buffer(np.concatenate([[0], ends[first:last] - start]).astype(np.int32))
        values = whole.slice(start * column.item_bytes, (end - start) * column.item_bytes)
        if is_text:
            pieces.append(pa.Array.from_buffers(kind, last - first, [None, offsets, values]))
        else:
            ids = pa.Array.from_buffers(pa.int32(), end - start, [None, values])
            pieces.append(pa.Array.from_buffers(kind, last - first, [None, offsets], children=[ids]))
        first, start = last, end
    return pa.chunked_array(pieces, kind)
