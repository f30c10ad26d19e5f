"""The store of reference log-probs: what it returns, what it survives, what it refuses."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.ragged import PairLogps, PairTable, Ragged
from prefopt.models import reference
from prefopt.models import shards as shards_module
from prefopt.models.reference import ReferenceStore
from prefopt.models.shards import DAMAGED, SHARD
from prefopt.process.errors import UserError

KEY = {"weights": "abc", "dtype": "float32"}


def build_table(num_pairs: int = 40, seed: int = 0) -> PairTable:
    rng = np.random.default_rng(seed)
    return PairTable(
        *(Ragged.of([rng.integers(0, 99, rng.integers(1, 9)) for _ in range(num_pairs)], np.int32) for _ in range(3))
    )


def logps_of(prompt, completion) -> np.ndarray:
    """A model's answer that depends on every token and on the order of prompt and completion."""
    return -(np.cumsum(completion) + 1000.0 * prompt.sum() + len(prompt)).astype(np.float32)


class Model:
    """Computes, and counts what it computed; after `dies_after` pairs it dies."""

    def __init__(self, batch: int = 4, dies_after: int | None = None) -> None:
        self.rows: list[int] = []
        self._batch, self._dies_after = batch, dies_after

    def __call__(self, table, rows):
        for start in range(0, len(rows), self._batch):
            if self._dies_after is not None and len(self.rows) >= self._dies_after:
                raise KeyboardInterrupt
            part = rows[start : start + self._batch]
            self.rows += part.tolist()
            sides = [
                Ragged.of([logps_of(table.prompt[row], side[row]) for row in part], np.float32)
                for side in (table.chosen, table.rejected)
            ]
            yield part, PairLogps(*sides)


def check(table: PairTable, found: PairLogps) -> None:
    for row in range(len(table)):
        assert (found.chosen[row] == logps_of(table.prompt[row], table.chosen[row])).all()
        assert (found.rejected[row] == logps_of(table.prompt[row], table.rejected[row])).all()


def shards(root: Path) -> list[Path]:
    return sorted(root.rglob(f"*{SHARD}"))


def test_what_is_stored_is_not_computed_again(tmp_path):
    table, model = build_table(), Model()
    found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, model)
    check(table, found)
    assert sorted(model.rows) == list(range(40))
    assert (usage.num_stored, usage.num_computed, usage.hit_rate) == (0, 40, 0.0)
    again = Model()
    found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, again)
    check(table, found)
    assert again.rows == []
    assert (usage.num_stored, usage.hit_rate) == (40, 1.0)


def test_saved_seconds_are_those_that_computing_took(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(reference.time, "monotonic", lambda: float(next(clock)))
    _, filled = ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())
    _, reused = ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())
    assert filled.computed_s > 0
    assert reused.saved_s == pytest.approx(filled.computed_s)


def test_only_what_is_missing_is_computed(tmp_path):
    table = build_table()
    part = PairTable(
        *(
            Ragged.of([side[row] for row in range(10)], np.int32)
            for side in (table.prompt, table.chosen, table.rejected)
        )
    )
    ReferenceStore.open(tmp_path, KEY).complete(part, Model())
    model = Model()
    found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, model)
    check(table, found)
    assert sorted(model.rows) == list(range(10, 40))
    assert usage.num_stored == 10


def test_a_killed_pass_goes_on_from_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FLUSH_S", -1.0)
    table = build_table()
    with pytest.raises(KeyboardInterrupt):
        ReferenceStore.open(tmp_path, KEY).complete(table, Model(dies_after=16))
    rest = Model()
    found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, rest)
    check(table, found)
    assert usage.num_stored == 16
    assert len(rest.rows) == 24


def test_after_a_kill_pairs_meet_the_same_others_in_their_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FLUSH_S", -1.0)
    monkeypatch.setattr(reference, "CHUNK_PAIRS", 20)
    table, whole, first, rest = build_table(), Model(), Model(dies_after=12), Model()
    ReferenceStore.open(tmp_path / "whole", KEY).complete(table, whole)
    with pytest.raises(KeyboardInterrupt):
        ReferenceStore.open(tmp_path / "killed", KEY).complete(table, first)
    ReferenceStore.open(tmp_path / "killed", KEY).complete(table, rest)

    def batches(rows):
        return {frozenset(rows[start : start + 4]) for start in range(0, len(rows), 4)}

    assert batches(first.rows) | batches(rest.rows) == batches(whole.rows)


def _fill(root: str) -> None:
    class Slow(Model):
        def __call__(self, table, rows):
            for batch in super().__call__(table, rows):
                time.sleep(0.002)
                yield batch

    reference.FLUSH_S, reference.CHUNK_PAIRS = 0.0, 8
    table = build_table(120)
    found, _ = ReferenceStore.open(Path(root), KEY).complete(table, Slow())
    check(table, found)


def test_processes_that_write_at_the_same_time_end_with_one_sound_store(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    model = Model()
    found, _ = ReferenceStore.open(tmp_path, KEY).complete(build_table(120), model)
    check(build_table(120), found)
    assert model.rows == []
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(f"*{DAMAGED}"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_a_damaged_shard_is_set_aside_and_computed_again(tmp_path, caplog, damage):
    table = build_table()
    ReferenceStore.open(tmp_path, KEY).complete(table, Model())
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    elif damage == "truncate":
        del content[-10:]
    elif damage == "empty":
        content.clear()
    else:
        content = bytearray(b"not a shard")
    shard.write_bytes(content)
    model = Model()
    with caplog.at_level("WARNING", logger="prefopt"):
        found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, model)
    check(table, found)
    assert usage.num_stored == 0
    assert len(model.rows) == 40
    assert shard.with_name(shard.name + DAMAGED).exists()


def test_leftovers_of_killed_writers_are_removed_once_they_are_old(tmp_path):
    store = ReferenceStore.open(tmp_path, KEY)
    store.folder.mkdir(parents=True)
    old, new = store.folder / "a.partial", store.folder / "b.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.complete(build_table(), Model())
    assert not old.exists()
    assert new.exists()


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    chosen=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    rejected=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    other=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_nothing_is_served_for_other_tokens(tmp_path_factory, prompt, chosen, rejected, other):
    def table(p, c, r):
        return PairTable(*(Ragged.of([np.array(ids)], np.int32) for ids in (p, c, r)))

    root = tmp_path_factory.mktemp("store")
    ReferenceStore.open(root, KEY).complete(table(prompt, chosen, rejected), Model())
    moved = (prompt[:-1], [prompt[-1], *chosen], [prompt[-1], *rejected])
    for changed in ((other, chosen, rejected), (prompt, other, rejected), (prompt, chosen, other), moved):
        found, _ = ReferenceStore.open(root, KEY).complete(table(*changed), Model())
        check(table(*changed), found)


@pytest.mark.parametrize("ingredient", ["weights", "dtype", "precision", "quantised", "attention", "device", "format"])
def test_every_ingredient_of_the_key_leads_elsewhere(tmp_path, ingredient):
    key = {
        "weights": "a",
        "dtype": "b",
        "precision": "c",
        "quantised": "d",
        "attention": "e",
        "device": "f",
        "format": "g",
    }
    ReferenceStore.open(tmp_path, key).complete(build_table(), Model())
    model = Model()
    ReferenceStore.open(tmp_path, {**key, ingredient: "other"}).complete(build_table(), model)
    assert len(model.rows) == 40
    assert len(shards(tmp_path)) == 2
    assert json.loads((ReferenceStore.open(tmp_path, key).folder / "key.json").read_text()) == key


def test_log_probs_that_are_not_finite_are_not_stored(tmp_path):
    class Broken(Model):
        def __call__(self, table, rows):
            for part, logps in super().__call__(table, rows):
                logps.chosen.values[0] = np.nan
                yield part, logps

    with pytest.raises(UserError, match="not finite"):
        ReferenceStore.open(tmp_path, KEY).complete(build_table(), Broken())
    assert not shards(tmp_path)


def test_a_shard_that_cannot_be_read_is_left_out_and_left_alone(tmp_path, monkeypatch):
    ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())
    (shard,) = shards(tmp_path)
    original = shards_module.open_file

    def refused(path):
        if path == shard:
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(shards_module, "open_file", refused)
    model = Model()
    found, _ = ReferenceStore.open(tmp_path, KEY).complete(build_table(), model)
    check(build_table(), found)
    assert len(model.rows) == 40
    assert shard.exists()


def test_one_value_that_is_not_finite_spoils_the_sum_of_its_row_alone():
    rows = Ragged.of([np.array([1.0, 2.0]), np.array([np.nan]), np.array([]), np.array([4.0])], np.float32)
    assert rows.sums()[[0, 2, 3]].tolist() == [3.0, 0.0, 4.0]
    assert np.isnan(rows.sums()[1])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    model = Model()
    with pytest.raises(UserError, match=r"cannot be stored here .*reference\.path.*reference=live"):
        ReferenceStore.open(tmp_path / "file", KEY).complete(build_table(), model)
    assert model.rows == []


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = ReferenceStore.open(tmp_path, KEY)
    monkeypatch.setattr("prefopt.storage.files.os.fsync", full)
    (tmp_path / store.folder.name).mkdir()
    (store.folder / "key.json").write_text("{}")
    with pytest.raises(UserError, match="No space left on device"):
        store.complete(build_table(), Model())
    assert not shards(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_store_that_has_everything_needs_no_right_to_write(tmp_path, monkeypatch):
    ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())

    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(reference, "write_bytes", refused)
    monkeypatch.setattr(reference, "write_json", refused)
    found, _ = ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())
    check(build_table(), found)
