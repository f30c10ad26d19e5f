"""Records and token ids in files: the same as lists of them, whatever is in them, without holding them."""

import datetime
import errno
import tracemalloc
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import id_table, table
from prefopt.data.id_table import Column, IdTable
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.data.table import Table, TableWriter, pack, unpack
from prefopt.process.errors import UserError

TEXT = st.text(st.characters(), max_size=8)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}, optional={"name": JSON}), max_size=3)
CONTENT = TEXT | MESSAGES
TOOLS = st.none() | st.lists(JSON, max_size=2)
KWARGS = st.dictionaries(TEXT, JSON, max_size=2)
PAIRS = st.builds(PreferencePair, CONTENT, CONTENT, CONTENT, TOOLS, KWARGS, TEXT)
EXAMPLES = st.builds(
    SFTExample,
    text=st.none() | TEXT,
    prompt=st.none() | CONTENT,
    completion=st.none() | CONTENT,
    messages=st.none() | MESSAGES,
    tools=TOOLS,
    chat_template_kwargs=KWARGS,
    source=TEXT,
)


def pairs(count: int) -> list[PreferencePair]:
    return [PreferencePair(f"q{i}", f"yes {i}", "no" * (i % 7), None, {}, f"a:{i}") for i in range(count)]


@given(st.lists(PAIRS | EXAMPLES, max_size=12), st.data())
def test_a_table_is_the_list_of_its_records(records: list[Any], data: st.DataObject) -> None:
    made = Table.of(iter(records))
    assert list(made) == records
    assert made == records
    assert len(made) == len(records)
    part = data.draw(st.slices(len(records)))
    assert made[part] == records[part]
    rows = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=8)) if records else []
    assert list(made.select(rows)) == [records[row] for row in rows]
    assert [made.select(rows)[at] for at in range(-len(rows), len(rows))] == [records[row] for row in rows] * 2
    assert list(made.select(np.array([row in rows for row in range(len(records))], dtype=bool))) == [
        record for row, record in enumerate(records) if row in rows
    ]


@given(PAIRS | EXAMPLES)
def test_types_within_a_record_stay(record: Any) -> None:
    assert repr(unpack(pack(record))) == repr(record)


def test_a_record_may_hold_what_json_has_not() -> None:
    tools = [{"since": datetime.date(2026, 1, 2), "price": Decimal("1.50")}]
    record = PreferencePair("q", "a", "b", tools, {}, "a:1")
    assert list(Table.of([record, *pairs(2)])) == [record, *pairs(2)]


def test_a_place_beyond_the_end_is_refused() -> None:
    with pytest.raises(IndexError):
        Table.of(pairs(3))[3]


def test_records_are_read_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 70, 1000):
        monkeypatch.setattr(table, "READ_BYTES", size)
        monkeypatch.setattr(table, "FLUSH_BYTES", size)
        records = pairs(50)
        made = Table.of(records)
        assert list(made) == records
        order = [*range(49, -1, -3), *range(0, 50, 2)]
        assert list(made.select(order)) == [records[row] for row in order]


def test_a_table_does_not_hold_its_records_in_memory() -> None:
    tracemalloc.start()
    writer = TableWriter[PreferencePair]()
    for number in range(3000):
        writer.append(PreferencePair("q" * 5000, "a" * 5000, str(number), None, {}, "a:1"))
    made = writer.table()
    assert sum(len(record.prompt) for record in made) == 3000 * 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20 < 3000 * 10_000


def test_a_full_disk_says_where_and_what_to_do() -> None:
    full = SimpleNamespace(write=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    writer = TableWriter[PreferencePair]()
    writer._store._file = full  # type: ignore[assignment]
    writer.append(pairs(1)[0])
    with pytest.raises(UserError, match=r"No space left on device.* Let TMPDIR name a folder with more room"):
        writer.table()


@given(st.lists(st.lists(st.tuples(st.lists(st.integers(0, 2**31 - 1), max_size=5), TEXT), max_size=4), max_size=4))
@pytest.mark.parametrize("most", [8, 2**31 - 1])
def test_a_table_of_ids_has_the_rows_of_its_chunks(most: int, chunks: list[Any]) -> None:
    chunks = [[(ids, text.encode(errors="replace").decode()[:4]) for ids, text in chunk] for chunk in chunks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_table, "MAX_VALUES", most * 4)
        ids = IdTable(("input_ids",))
        for chunk in chunks:
            ids.add([Column.of_ids([row for row, _ in chunk]), Column.of_texts(text for _, text in chunk)])
        dataset = ids.to_dataset()
    rows = [row for chunk in chunks for row in chunk]
    assert ids.num_rows == len(dataset) == len(rows)
    assert dataset.data.column("input_ids").to_pylist() == [row for row, _ in rows]
    assert dataset.data.column("source").to_pylist() == [text for _, text in rows]
    if most > 8:
        assert all(column.num_chunks == 1 for column in dataset.data.columns)
    dataset.data.validate(full=True)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], []), ([], [2])])
def test_optional_columns_are_there_together_or_not_at_all(first: list[int], second: list[int]) -> None:
    table = IdTable(("ids",), ("first", "second"))
    table.add([*map(Column.of_ids, ([[7], [8]], [[], first], [second, []])), Column.of_texts(["a:1", "a:2"])])
    columns = table.to_dataset().to_dict()
    optional = {"first": [[], first], "second": [second, []]} if first or second else {}
    assert columns == {"ids": [[7], [8]], **optional, "source": ["a:1", "a:2"]}
