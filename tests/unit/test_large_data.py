"""Large data: preparing them takes little memory, and a second start reads no row."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefopt.config.load import load_config
from prefopt.config.schema import TrainConfig
from prefopt.data import cache, sources
from prefopt.data.audit import audit as auditing
from prefopt.data.id_table import Column, IdTable
from prefopt.data.loading import Splits, read_splits
from prefopt.data.notes import DataNotes
from prefopt.data.token_splits import TokenizedSplits
from prefopt.models import examples
from prefopt.models.examples import Examples, load_examples
from prefopt.models.limits import Limits
from prefopt.process.paths import shipped
from tests.conftest import write_rows

ROWS, IDS = 1000, 1000
"""Rows of a chunk, and ids of a row: 4 MB."""


class Memory:
    """The most memory that Python, NumPy and Arrow had allocated at once; pages of mapped files are none of it."""

    num_bytes = 0


@contextmanager
def measured() -> Iterator[Memory]:
    memory, before = Memory(), pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield memory
        memory.num_bytes = tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def build_table(num_chunks: int) -> IdTable:
    table = IdTable(["input_ids", "labels"])
    values, lengths = np.arange(ROWS * IDS, dtype=np.int32).tobytes(), np.full(ROWS, IDS)
    places = Column.of_texts(f"a.jsonl:{row}" for row in range(ROWS))
    for _ in range(num_chunks):
        table.add([Column(values, lengths), Column(values, lengths), places])
    return table


def keep(table: IdTable, folder: Path) -> dict[str, str]:
    """Stores, opens, checks and hashes token ids as the start of a run does."""
    made = TokenizedSplits(kind="sft", train=table.to_dataset(), held_out=None, notes=DataNotes())
    cache._store(folder, "0" * 64, made, None)
    found = cache.find_stored(folder, "0" * 64)
    assert found is not None
    Limits("a model", context=IDS, num_tokens=None).check_data(found)
    return Examples(None, found, None).fingerprints()  # type: ignore[arg-type]


def test_token_ids_are_kept_without_being_copied_in_memory(tmp_path: Path) -> None:
    keep(build_table(1), tmp_path / "first")  # what is imported and remembered at the first time is not measured
    table = build_table(5)  # 40 MB
    with measured() as memory:
        keep(table, tmp_path / "folder")
    assert (tmp_path / "folder" / "train.arrow").stat().st_size > 5 * 2 * ROWS * IDS * 4
    assert memory.num_bytes < 4_000_000


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Question {i}: ", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(20)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    return load_config(["data=files", f"data.train={data}", f"model.path={shipped('assets/base_model')}"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that read, audit and digest, each time that one is called."""
    called: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **more: called.append(name) or function(*args, **more))

    count(examples, "read_splits")
    count(auditing, "run_checks")
    count(sources, "_digest_file")
    return called


def test_a_second_start_reads_and_audits_no_row(config: TrainConfig, calls: list[str]) -> None:
    first = load_examples(config, audited=True)
    assert calls.count("read_splits") == calls.count("run_checks") == 1
    second = load_examples(config, audited=True)
    assert calls.count("read_splits") == calls.count("run_checks") == 1
    assert second.audit == first.audit
    assert second.fingerprints() == first.fingerprints()
    data = Path(str(config.data.train))
    data.write_text(data.read_text() + data.read_text().replace("Question", "Riddle"))
    load_examples(config, audited=True)
    assert calls.count("read_splits") == calls.count("run_checks") == 2


def test_a_label_of_unknown_words_is_warned_of_at_every_start_and_the_rows_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Q{i}", "completion": "Yes.", "label": ["alpha", "beta"][i % 2]} for i in range(20)]
    data = write_rows(tmp_path / "labelled.jsonl", rows)
    config = load_config(
        ["data=files", "algorithm=sft", f"data.train={data}", f"model.path={shipped('assets/base_model')}"]
    )
    for _ in range(2):
        caplog.clear()
        load_examples(config, audited=True)
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [line for line in told if line.startswith("data: column 'label' has two values")] == told
        assert len(told) == 1
    assert calls.count("read_splits") == 1


def test_a_start_digests_a_file_once_and_after_reading_once_more(config: TrainConfig, calls: list[str]) -> None:
    load_examples(config, audited=True)
    assert calls == ["_digest_file", "read_splits", "run_checks", "_digest_file"]
    calls.clear()
    load_examples(config, audited=True)
    assert calls == ["_digest_file"]


def test_the_audit_of_rows_is_not_taken_for_that_of_a_file_that_changed_after_it_was_read(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(str(config.data.train))

    def read_then_change(*args: Any, **more: Any) -> Splits:
        splits = read_splits(*args, **more)
        data.write_text(data.read_text() + data.read_text().replace("Question", "Riddle"))
        return splits

    with monkeypatch.context() as patch:
        patch.setattr(examples, "read_splits", read_then_change)
        first = load_examples(config, audited=True).audit
    second = load_examples(config, audited=True).audit
    assert first is not None
    assert second is not None
    assert (first.rows, second.rows) == (20, 40)
