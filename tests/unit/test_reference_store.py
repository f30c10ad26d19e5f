"""The store of reference log-probs: what it returns, what it survives, what it refuses."""

import hashlib
import json
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from prefopt.data.ragged import PairLogps, PairTable, Ragged
from prefopt.evaluation import scoring
from prefopt.evaluation.scoring import PairScores
from prefopt.models import lookup, reference
from prefopt.models import shards as shards_module
from prefopt.models.reference import ReferenceStore
from prefopt.models.shards import DAMAGED, SHARD, MappedShard, keys_of
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


class MovedByItsBatch(Model):
    """A model whose rounding depends on what else is in a batch, and so shows which batches were computed."""

    def __call__(self, table, rows):
        for part, logps in super().__call__(table, rows):
            moved = 1e-3 * np.float32(sum(hash((place, int(row))) % 997 for place, row in enumerate(part)))
            sides = (Ragged(side.values + moved, side.offsets) for side in (logps.chosen, logps.rejected))
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


@settings(max_examples=30)
@given(st.lists(st.sets(st.integers(0, 99), min_size=1, max_size=12), max_size=3), st.integers(0, 3))
def test_what_runs_compute_bit_by_bit_is_what_one_whole_pass_computes(tmp_path_factory, needs, seed):
    root, table = tmp_path_factory.mktemp("store"), build_table(100, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reference, "CHUNK_PAIRS", 10)
        whole, _ = ReferenceStore.open(root / "whole", KEY).complete(table, MovedByItsBatch())
        for need in [*map(sorted, needs), None]:
            rows = None if need is None else np.array(need)
            model = MovedByItsBatch()
            store = ReferenceStore.open(root / "parts", KEY)
            found, usage = store.complete(table, model, rows=rows, batch_size=4)
            for row in range(100) if need is None else need:
                assert found.chosen[row].tobytes() == whole.chosen[row].tobytes()
                assert found.rejected[row].tobytes() == whole.rejected[row].tobytes()
            assert usage.num_pairs == (100 if need is None else len(need))
            assert usage.num_rows == 100
            assert usage.num_computed == len(model.rows) <= 4 * (usage.num_pairs - usage.num_stored)


def test_a_few_pairs_of_many_need_no_key_and_no_forward_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_PAIRS", 10)
    table, model = build_table(1000), Model()
    hashed = []
    monkeypatch.setattr(lookup, "keys_of", lambda table, rows: hashed.extend(rows) or keys_of(table, rows))
    _, usage = ReferenceStore.open(tmp_path, KEY).complete(table, model, rows=np.array([5, 700]), batch_size=4)
    assert {5, 700} < set(model.rows)
    assert len(model.rows) == usage.num_computed <= 8
    assert len(hashed) == 20
    assert str(usage).startswith("this run needs 2 of 1000 rows; 0 of 2 pairs from the store (0.0%)")


def test_a_pair_that_was_not_asked_for_cannot_be_read(tmp_path):
    found, _ = ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model(), rows=np.array([3]), batch_size=1)
    found.chosen[3]
    with pytest.raises(AssertionError, match="row 4 was not asked for"):
        found.chosen[4]


def test_a_store_of_an_earlier_version_is_read(tmp_path):
    """The oracle for the format: keys and file are written here as version 0.1 wrote them."""
    table, store = build_table(), ReferenceStore.open(tmp_path, KEY)
    keys, logps = [], []
    for row in range(len(table)):
        for side in (table.chosen, table.rejected):
            ids = table.prompt[row].tobytes() + side[row].tobytes()
            keys.append(hashlib.sha256(np.int64(len(table.prompt[row])).tobytes() + ids).digest()[:16])
            logps.append(logps_of(table.prompt[row], side[row]))
    packed = save(
        {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
            "lengths": np.array([len(each) for each in logps], np.int32),
            "logps": np.concatenate(logps),
            "seconds": np.array([3.0]),
        }
    )
    store.folder.mkdir(parents=True)
    (store.folder / f"{hashlib.sha256(packed).hexdigest()}{SHARD}").write_bytes(packed)
    model = Model()
    found, usage = store.complete(table, model)
    check(table, found)
    assert model.rows == []
    assert usage.saved_s == pytest.approx(3.0)


def test_stored_log_probs_take_no_memory_and_no_open_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FLUSH_S", -1.0)
    rng = np.random.default_rng(0)
    sides = [Ragged(np.zeros(2000 * length, np.int32), np.arange(2001) * length) for length in (4, 500, 500)]
    sides[0].values[:] = rng.integers(0, 2**30, 8000)
    table = PairTable(*sides)

    def compute(table, rows):
        logps = Ragged(rng.standard_normal(len(rows) * 500, np.float32), np.arange(len(rows) + 1) * 500)
        yield rows, PairLogps(logps, logps)

    ReferenceStore.open(tmp_path, KEY).complete(table, compute)
    files = len(os.listdir("/proc/self/fd"))
    tracemalloc.start()
    found, usage = ReferenceStore.open(tmp_path, KEY).complete(table, compute)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert usage.hit_rate == 1.0
    assert len(shards(tmp_path)) == 8
    assert peak < 500 * len(table), "of 4,000 bytes a pair"
    assert len(os.listdir("/proc/self/fd")) == files
    assert found.chosen[7].base is not None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))), st.data())
def test_records_are_found_by_all_of_their_key(pairs, data):
    """Keys whose halves are often alike, against a dict."""
    keys = np.array([[[a, b], [c, d]] for a, b, c, d in pairs], np.uint64).reshape(-1, 2, 2)
    order = data.draw(st.permutations([(a, b) for a in range(4) for b in range(4)]))
    stored = order[: data.draw(st.integers(0, 16))]
    table = PairTable(*(Ragged(np.zeros(len(pairs), np.int32), np.arange(len(pairs) + 1)) for _ in range(3)))
    shard = MappedShard(
        np.array(stored, np.uint64).reshape(-1, 2).view(np.uint8).reshape(-1, 16),
        np.ones(len(stored), np.int32),
        np.arange(len(stored), dtype=np.float32),
        1.0,
    )
    rows = np.arange(len(pairs))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lookup, "keys_of", lambda table, rows: keys[rows].view(np.uint8).reshape(-1, 2, 16))
        found = lookup.Lookup(table, rows)
    found.add(shard)
    place = {key: index for index, key in enumerate(stored)}
    missing = [(a, b) not in place or (c, d) not in place for a, b, c, d in pairs]
    assert found.is_missing(rows).tolist() == missing
    assert (found.keys(rows).view(np.uint64).reshape(-1, 2, 2) == keys).all()
    whole = rows[~found.is_missing(rows)]
    logps = found.logps(whole)
    for row in whole.tolist():
        a, b, c, d = pairs[row]
        assert (logps.chosen[row][0], logps.rejected[row][0]) == (place[a, b], place[c, d])


def test_records_that_cannot_be_read_again_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "map_sound", lambda path: None)
    with pytest.raises(UserError, match=r"40 pairs were stored here and cannot be read again.*reference\.path"):
        ReferenceStore.open(tmp_path, KEY).complete(build_table(), Model())


def test_a_shard_that_holds_something_else_under_its_own_digest_is_set_aside(tmp_path, caplog):
    store = ReferenceStore.open(tmp_path, KEY)
    store.folder.mkdir(parents=True)
    contents = [b"", b"x", b"x" * 100, save({"keys": np.zeros((2, 16), np.uint8)}), save({"a": np.zeros(3)})]
    contents.append(b"\x02" + bytes(7) + b"[]")
    for content in contents:
        (store.folder / f"{hashlib.sha256(content).hexdigest()}{SHARD}").write_bytes(content)
    found, _ = store.complete(build_table(), Model())
    check(build_table(), found)
    assert len(list(tmp_path.rglob(f"*{DAMAGED}"))) == len(contents)
    assert caplog.text.count("it holds no records") == len(contents)


def test_summing_up_parts_of_the_pairs_gives_the_same_bits_as_all_at_once(tmp_path, monkeypatch):
    table = build_table(300)
    contexts = tuple(Ragged.of([np.arange(row % 2 * 2) // 2 for row in range(300)], np.int32) for _ in range(2))
    table = PairTable(table.prompt, table.chosen, table.rejected, contexts)
    found, _ = ReferenceStore.open(tmp_path, KEY).complete(table, MovedByItsBatch())
    whole = PairScores.of(table.trained(found.read(0, 300)))
    monkeypatch.setattr(scoring, "READ_PAIRS", 7)
    parts = PairScores.of_stored(table, found)
    for ours, theirs in ((parts.chosen, whole.chosen), (parts.rejected, whole.rejected)):
        assert ours.logps.tobytes() == theirs.logps.tobytes()
        assert ours.lengths.tobytes() == theirs.lengths.tobytes()


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
