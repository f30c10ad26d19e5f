"""Token ids on disk: the same as without, found again only for the same input, and never trusted when damaged."""

import errno
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from prefopt.config.algorithms import Kind
from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.config.schema import DataConfig
from prefopt.data import cache, token_splits
from prefopt.data.cache import ABOUT, DAMAGED, MANIFEST, fetch_cached, load_cached, open_cached
from prefopt.data.loading import Splits, read_splits
from prefopt.data.notes import DataNotes
from prefopt.data.ragged import PairTable
from prefopt.data.read_notes import ReadNotes
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.token_splits import TokenizedSplits, load_tokenized
from prefopt.models.examples import Examples
from prefopt.process.errors import UserError
from prefopt.storage import sealed
from prefopt.storage.files import PARTIAL
from tests.conftest import REPOSITORY, write_rows
from tests.unit.test_tokenize import CHATML, DOUBLE_BOS, build_tokenizer

SKIPPING = {
    "on_empty": "skip",
    "on_identical": "skip",
    "on_overlap": "skip",
    "on_long_prompt": "skip",
    "on_long_completion": "truncate",
    "on_extra_eos": "skip",
}
SETTINGS: dict[str, Any] = {
    name: (OnLongCompletion if name == "on_long_completion" else OnBadRow)(value) for name, value in SKIPPING.items()
}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def text_pairs(count: int, start: int = 0) -> list[Record]:
    return [
        PreferencePair(f"question {i}: ", f"yes {i}", f"no {i}", None, {}, f"a.jsonl:{i}")
        for i in range(start, start + count)
    ]


def chat_pair(
    prompt: str = "q", *, source: str = "a.jsonl:1", tools: Any = None, template: Any = None, **more: Any
) -> PreferencePair:
    sides = ([turn("user", prompt, **more)], [turn("assistant", "yes")], [turn("assistant", "no")])
    return PreferencePair(*sides, tools, template or {}, source)


@dataclass
class Input:
    """All that a call takes; tests change one thing of it."""

    train: list[Record]
    held_out: list[Record] | None
    kind: Kind = "preference"
    tokenizer: Any = field(default_factory=lambda: build_tokenizer(CHATML))
    config: DataConfig = field(default_factory=lambda: DataConfig(train="a.jsonl", max_length=64))
    loss_on: LossOn = LossOn.completions
    notes: DataNotes = field(default_factory=DataNotes)

    @classmethod
    def pairs(cls, **changes: Any) -> "Input":
        return cls(**{"train": text_pairs(4), "held_out": text_pairs(2, 10), **changes})

    @classmethod
    def chats(cls, **changes: Any) -> "Input":
        return cls(train=[chat_pair(**changes)], held_out=None)

    @classmethod
    def demonstrations(cls, **fields: Any) -> "Input":
        return cls(train=[SFTExample(source="a.jsonl:1", **fields)], held_out=None, kind="sft")

    def splits(self) -> Splits:
        return Splits(kind=self.kind, train=self.train, held_out=self.held_out, notes=self.notes)

    def fetch(self, root: Path) -> cache.Cached:
        return fetch_cached(self.splits(), self.tokenizer, self.config, loss_on=self.loss_on, root=root)

    def key(self) -> str:
        return cache._key(self.splits(), self.tokenizer, self.config, self.loss_on)


def check_same(found: TokenizedSplits, expected: TokenizedSplits) -> None:
    assert found.kind == expected.kind
    assert found.notes.lines() == expected.notes.lines()
    assert found.notes.to_dict() == expected.notes.to_dict()
    assert (found.held_out is None) == (expected.held_out is None)
    for one, other in ((found.train, expected.train), (found.held_out, expected.held_out)):
        if other is None:
            continue
        assert one.column_names == other.column_names
        assert one.features == other.features
        assert one.data.schema == other.data.schema
        assert one.to_dict() == other.to_dict()
        assert one.select([len(one) - 1, 0]).to_dict() == other.select([len(other) - 1, 0]).to_dict()
        for name in one.column_names:
            assert one.data.column(name).combine_chunks() == other.data.column(name).combine_chunks()
        if found.kind == "preference":
            for side in ("prompt", "chosen", "rejected"):
                tables = [getattr(PairTable.of(dataset), side) for dataset in (one, other)]
                assert tables[0].values.dtype == tables[1].values.dtype == np.int32
                assert (tables[0].values == tables[1].values).all()
                assert (tables[0].offsets == tables[1].offsets).all()
    hashes = [Examples(None, tokenized, None).fingerprints() for tokenized in (found, expected)]  # type: ignore[arg-type]
    assert hashes[0] == hashes[1]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def no_tokenizing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call of what this returns on, tokenizing fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("tokenised again")

    def forbid() -> None:
        for name in ("tokenize_pairs", "tokenize_sft"):
            monkeypatch.setattr(token_splits, name, refuse)
        monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", refuse)

    return forbid


def write_pairs(folder: Path) -> DataConfig:
    """Files with a row for each kind of note."""

    def row(prompt: str, chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}

    rows = [row(f"question {i}: ", f"yes {i}") for i in range(8)]
    rows += [
        row("twice"), row("twice"), row("empty", chosen=""), row("same", rejected="yes"), row("extra", note="ignored"),
        row("p" * 70), row("cut", chosen="y" * 70), row("both cut", chosen="y" * 70, rejected="y" * 71),
        row("ends", chosen="yes</s>no"), row("held out 1"),
    ]  # fmt: skip
    train = write_rows(folder / "train.jsonl", rows)
    held_out = write_rows(folder / "held_out.jsonl", [row(f"held out {i}") for i in range(3)])
    return DataConfig(train=str(train), held_out=str(held_out), max_length=64, **SETTINGS)


def write_demonstrations(folder: Path) -> DataConfig:
    rows = [{"messages": [turn("user", f"q{i}"), turn("assistant", "a" * i)]} for i in range(1, 30, 3)]
    train = write_rows(folder / "demonstrations.jsonl", rows)
    return DataConfig(train=str(train), held_out_fraction=0.3, max_length=64, **SETTINGS)


def write_texts(folder: Path) -> DataConfig:
    train = write_rows(folder / "texts.jsonl", [{"text": f"line {i}"} for i in range(5)])
    return DataConfig(train=str(train), held_out_fraction=0.0, max_length=64, **SETTINGS)


FILES: dict[str, tuple[Callable[[Path], DataConfig], Kind, LossOn]] = {
    "pairs": (write_pairs, "preference", LossOn.completions),
    "demonstrations": (write_demonstrations, "sft", LossOn.completions),
    "whole demonstrations": (write_demonstrations, "sft", LossOn.all),
    "texts without held-out": (write_texts, "sft", LossOn.completions),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hit_equals_a_miss_and_both_equal_tokenizing(name, tmp_path, no_tokenizing, caplog):
    write, kind, loss_on = FILES[name]
    config, root = write(tmp_path), tmp_path / "cache"

    def read() -> Splits:
        return read_splits(config, kind=kind, seed=0)

    plain = load_tokenized(read(), build_tokenizer(CHATML), config, loss_on=loss_on)
    if kind == "preference":
        counts = plain.notes.tokenized["train"]
        assert counts.num_kept < counts.num_rows
        assert len(plain.notes.lines()) > 8
    miss = load_cached(read(), build_tokenizer(CHATML), config, loss_on=loss_on, root=root)
    check_same(miss, plain)
    no_tokenizing()
    splits = read()
    with caplog.at_level(logging.INFO):
        hit = load_cached(splits, build_tokenizer(CHATML), config, loss_on=loss_on, root=root)
    check_same(hit, plain)
    assert hit.notes is splits.notes
    assert [record.getMessage() for record in caplog.records] == [
        f"data: tokenised before; read from {root / folders(root)[0]}"
    ]
    check_same(open_cached(root / folders(root)[0]), plain)


def test_a_process_that_read_no_records_opens_the_same(tmp_path, no_tokenizing):
    stored = Input.pairs(notes=DataNotes(read={"train": ReadNotes(num_rows=9, num_duplicates=2)})).fetch(tmp_path)
    no_tokenizing()
    assert stored.folder is not None
    opened = open_cached(stored.folder)
    check_same(opened, stored.tokenized)
    assert opened.train._fingerprint == stored.tokenized.train._fingerprint


def test_opened_ids_stay_on_disk_and_in_one_piece(tmp_path):
    given = Input.pairs(train=text_pairs(2500))
    folder = given.fetch(tmp_path).folder
    assert folder is not None
    before = pa.total_allocated_bytes()
    opened = open_cached(folder)
    assert pa.total_allocated_bytes() - before < 10_000 < opened.train.data.nbytes
    pieces = opened.train.data.column("prompt_ids").chunks
    assert [len(piece) for piece in pieces] == [2500]
    check_same(opened, load_tokenized(given.splits(), given.tokenizer, given.config))


def test_columns_too_long_for_one_piece_are_stored_in_several(tmp_path):
    length = 2**30 + 1  # nulls take no memory
    rows = pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), pa.nulls(length))
    table = pa.table({"ids": pa.chunked_array([rows, rows])})
    cache._write_table(tmp_path / "table.arrow", table)
    with pa.memory_map(str(tmp_path / "table.arrow")) as source:
        stored = pa.ipc.open_file(source).read_all()
    assert stored.column("ids").num_chunks == 2
    assert stored.num_rows == 2


def test_map_writes_nothing_into_the_cache(tmp_path):
    stored = Input.pairs().fetch(tmp_path)
    assert stored.folder is not None
    before = folders(stored.folder)
    stored.tokenized.train.map(lambda row: {"length": len(row["prompt_ids"])})
    assert stored.tokenized.train.cache_files == []
    assert folders(stored.folder) == before


def with_backend(change: Callable[[Any], None], **settings: Any) -> Any:
    tokenizer = build_tokenizer(CHATML, **settings)
    change(tokenizer.backend_tokenizer)
    return tokenizer


def with_attribute(name: str, value: Any) -> Any:
    tokenizer = build_tokenizer(CHATML)
    setattr(tokenizer, name, value)
    return tokenizer


def with_argument(name: str, value: Any) -> Any:
    tokenizer = build_tokenizer(CHATML)
    tokenizer.init_kwargs[name] = value
    return tokenizer


class OtherClass(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Could render or encode in another way."""


def lowercase(backend: Any) -> None:
    backend.normalizer = normalizers.Lowercase()


BASE = text_pairs(4)
TOOL = {"name": "f", "strict": True}
CHANGES: dict[str, tuple[Callable[[], Input], Callable[[], Input]]] = {
    "prompt": (Input.pairs, lambda: Input.pairs(train=[replace(BASE[0], prompt="else"), *BASE[1:]])),
    "chosen": (Input.pairs, lambda: Input.pairs(train=[replace(BASE[0], chosen="else"), *BASE[1:]])),
    "rejected": (Input.pairs, lambda: Input.pairs(train=[*BASE[:3], replace(BASE[3], rejected="else")])),
    "source": (Input.pairs, lambda: Input.pairs(train=[replace(BASE[0], source="b.jsonl:0"), *BASE[1:]])),
    "chosen and rejected swapped": (
        Input.pairs,
        lambda: Input.pairs(train=[replace(BASE[0], chosen="no 0", rejected="yes 0"), *BASE[1:]]),
    ),
    "text moved over a border": (
        lambda: Input.pairs(train=[replace(BASE[0], prompt="ab", chosen="c")]),
        lambda: Input.pairs(train=[replace(BASE[0], prompt="a", chosen="bc")]),
    ),
    "order": (Input.pairs, lambda: Input.pairs(train=BASE[::-1])),
    "one row less": (Input.pairs, lambda: Input.pairs(train=BASE[:3])),
    "held-out row": (Input.pairs, lambda: Input.pairs(held_out=text_pairs(2, 11))),
    "nothing held out": (Input.pairs, lambda: Input.pairs(held_out=None)),
    "row moved to held-out": (
        Input.pairs,
        lambda: Input.pairs(train=BASE[:3], held_out=[BASE[3], *text_pairs(2, 10)]),
    ),
    "message content": (Input.chats, lambda: Input.chats(prompt="r")),
    "message key": (Input.chats, lambda: Input.chats(name="Ann")),
    "tools": (Input.chats, lambda: Input.chats(tools=[TOOL])),
    "order of a tool's keys": (
        lambda: Input.chats(tools=[TOOL]),
        lambda: Input.chats(tools=[dict(reversed(TOOL.items()))]),
    ),
    "true and 1": (lambda: Input.chats(tools=[TOOL]), lambda: Input.chats(tools=[{**TOOL, "strict": 1}])),
    "template arguments": (Input.chats, lambda: Input.chats(template={"think": True})),
    "date in a message": (
        lambda: Input.chats(on=date(2026, 1, 1)),
        lambda: Input.chats(on=date(2026, 1, 2)),
    ),
    "demonstration's text": (
        lambda: Input.demonstrations(text="a"),
        lambda: Input.demonstrations(text="b"),
    ),
    "demonstration's completion": (
        lambda: Input.demonstrations(prompt="a", completion="b"),
        lambda: Input.demonstrations(prompt="a", completion="c"),
    ),
    "demonstration's messages": (
        lambda: Input.demonstrations(messages=[turn("user", "a"), turn("assistant", "b")]),
        lambda: Input.demonstrations(messages=[turn("user", "a"), turn("assistant", "c")]),
    ),
    "loss_on": (
        lambda: Input.demonstrations(prompt="a", completion="b"),
        lambda: replace(Input.demonstrations(prompt="a", completion="b"), loss_on=LossOn.all),
    ),
    **{
        f"data.{name}": (
            Input.pairs,
            lambda name=name, value=value: Input.pairs(
                config=DataConfig(**{"train": "a.jsonl", "max_length": 64, name: value})
            ),
        )
        for name, value in {
            "max_length": 65,
            "on_long_prompt": OnBadRow.skip,
            "on_long_completion": OnLongCompletion.skip,
            "on_extra_eos": OnBadRow.skip,
        }.items()
    },
    "notes of reading": (Input.pairs, lambda: Input.pairs(notes=DataNotes(num_overlap_skipped=1))),
    **{
        f"tokenizer: {name}": (Input.pairs, lambda build=build: Input.pairs(tokenizer=build()))
        for name, build in {
            "begin-of-sequence": lambda: build_tokenizer(CHATML, adds_bos=False),
            "end-of-sequence": lambda: with_attribute("eos_token", "<|im_end|>"),
            "chat template": lambda: build_tokenizer(DOUBLE_BOS),
            "template of tools": lambda: build_tokenizer({"default": CHATML, "tool_use": DOUBLE_BOS}),  # type: ignore[arg-type]
            "normaliser": lambda: with_backend(lowercase),
            "merges of the vocabulary": lambda: with_backend(lambda backend: backend.add_tokens(["question"])),
            "split_special_tokens": lambda: with_attribute("split_special_tokens", True),
            "class": lambda: with_attribute("__class__", OtherClass),
            "argument": lambda: with_argument("legacy", True),
        }.items()
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_may_change_the_ids_changes_the_key(name):
    first, second = CHANGES[name]
    assert first().key() == first().key()
    assert first().key() != second().key()


def test_the_border_between_the_splits_is_in_the_key():
    rows = text_pairs(6)
    keys = {Input.pairs(train=rows[:count], held_out=rows[count:] or None).key() for count in (2, 4, 6)}
    assert len(keys) == 3


@pytest.mark.parametrize("name", ["FORMAT", "CODE"])
def test_another_format_or_code_changes_the_key(name, monkeypatch):
    before = Input.pairs().key()
    monkeypatch.setattr(cache, name, "other")
    assert Input.pairs().key() != before


@pytest.mark.parametrize("package", ["prefopt", "tokenizers", "transformers", "jinja2"])
def test_another_version_of_a_package_changes_the_key(package, monkeypatch):
    before = Input.pairs().key()
    real = cache.version
    monkeypatch.setattr(cache, "version", lambda name: "99.0" if name == package else real(name))
    assert Input.pairs().key() != before


def test_settings_of_reading_and_leftovers_in_the_tokenizer_do_not_change_the_key():
    config = DataConfig(
        train="elsewhere.jsonl",
        held_out="b.jsonl",
        held_out_fraction=0.5,
        max_length=64,
        on_overlap=OnBadRow.skip,
        on_empty=OnBadRow.skip,
        on_identical=OnBadRow.skip,
    )
    used = build_tokenizer(CHATML)
    used.backend_tokenizer.enable_truncation(7)
    used.backend_tokenizer.enable_padding()
    given = Input.pairs(config=config, tokenizer=used)
    assert given.key() == Input.pairs().key()
    assert used.backend_tokenizer.truncation is not None  # looked at, not changed


def test_the_place_of_a_tokenizer_does_not_change_the_key(tmp_path):
    keys = []
    for name in ("one", "another"):
        build_tokenizer(CHATML).save_pretrained(tmp_path / name)
        keys.append(Input.pairs(tokenizer=PreTrainedTokenizerFast.from_pretrained(tmp_path / name)).key())
    assert keys[0] == keys[1]
    assert Input.pairs(tokenizer=with_argument("is_local", True)).key() == Input.pairs().key()


def test_tokenizers_in_python_are_known_by_their_files():
    def key(token: str) -> str:
        tokenizer = ByT5Tokenizer(extra_ids=3)
        tokenizer.add_tokens([token])
        return Input.pairs(tokenizer=tokenizer).key()

    assert key("yes") == key("yes")
    assert key("yes") != key("yet")


def many_sided() -> Input:
    chats = [
        chat_pair(f"q{i}", source=f"a.jsonl:{i}", tools=[TOOL], template={"think": i % 2 == 0, "depth": 0.5 + i})
        for i in range(5)
    ]
    return Input(train=list(chats), held_out=[chat_pair("ü€😀")])


def print_key(records: str) -> None:
    """What the test below runs in another process, with records that came from JSON."""
    sides = [[PreferencePair(**row) for row in side] for side in json.loads(records)]
    print(Input(train=sides[0], held_out=sides[1]).key())


def test_a_key_is_the_same_in_every_process():
    given = many_sided()
    assert given.held_out is not None
    names = PreferencePair.__slots__
    sides = [[{name: getattr(row, name) for name in names} for row in side] for side in (given.train, given.held_out)]
    code = f"from tests.unit.test_token_cache import print_key; print_key({json.dumps(sides)!r})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split()[-1] == given.key()


TODAY = "{{ strftime_now('%d %b %Y') }}" + CHATML


@pytest.mark.parametrize(
    ("template", "is_same_at_noon", "is_same_tomorrow"),
    [
        (TODAY, True, False),
        (TODAY.replace("'", '"'), True, False),
        ("{% if strftime_now is defined %}{% endif %}" + CHATML, True, True),
        ("{% set now = strftime_now %}{{ now('%d') }}" + CHATML, False, False),
        ("{{ strftime_now('%d' + date) }}" + CHATML, False, False),
        ({"default": CHATML, "tool_use": TODAY}, True, False),
    ],
)
def test_the_date_that_a_template_writes_is_part_of_the_key(template, is_same_at_noon, is_same_tomorrow, monkeypatch):
    def key_at(*moment: int) -> str:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(*moment)

        monkeypatch.setattr(cache, "datetime", Clock)
        return Input.pairs(tokenizer=build_tokenizer(template)).key()

    morning = key_at(2026, 5, 4, 8)
    assert (key_at(2026, 5, 4, 12) == morning) == is_same_at_noon
    assert (key_at(2026, 5, 5, 8) == morning) == is_same_tomorrow


def test_values_that_json_does_not_know_are_tokenised_and_kept(tmp_path, no_tokenizing):
    def build() -> Input:
        return Input.chats(on=date(2026, 1, 1))

    first = build().fetch(tmp_path)
    no_tokenizing()
    check_same(build().fetch(tmp_path).tokenized, first.tokenized)


def test_fingerprints_name_the_key_and_the_split_however_the_ids_were_got(tmp_path):
    given = Input.pairs()
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    ways = [given.fetch(root).tokenized for root in (tmp_path / "cache", tmp_path / "cache", nowhere)]
    names = {(way.train._fingerprint, way.held_out._fingerprint) for way in ways}
    assert names == {(f"{given.key()[:32]}_train", f"{given.key()[:32]}_held_out")}


FILE_NAMES = ("train.arrow", "held_out.arrow", ABOUT, MANIFEST)


def flip(path: Path, place: float, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "bit at the start": lambda path: flip(path, 0),
    "bit in the middle": lambda path: flip(path, 0.5),
    "bit at the end": lambda path: flip(path, 1),
}


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_set_aside_and_mended(name, damage, tmp_path, caplog):
    expected = load_tokenized(Input.pairs().splits(), Input.pairs().tokenizer, Input.pairs().config)
    folder = Input.pairs().fetch(tmp_path).folder
    assert folder is not None
    DAMAGES[damage](folder / name)
    if not (name == MANIFEST and damage == "cut"):  # its last byte is a line feed
        with pytest.raises(UserError, match="cannot be read here"):
            open_cached(folder)
        check_same(Input.pairs().fetch(tmp_path).tokenized, expected)
        assert any(f"{folder} is damaged" in line for line in warnings(caplog))
        assert [name for name in folders(tmp_path) if name.endswith(DAMAGED)]
    caplog.clear()
    again = Input.pairs().fetch(tmp_path)
    check_same(again.tokenized, expected)
    assert again.folder == folder
    assert warnings(caplog) == []


def test_no_flipped_bit_of_the_manifest_goes_unnoticed(tmp_path):
    folder = Input.pairs().fetch(tmp_path).folder
    assert folder is not None
    content = (folder / MANIFEST).read_bytes()
    for place in range(len(content)):
        for bit in (0, 5):  # another digit; another case
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            (folder / MANIFEST).write_bytes(changed)
            with pytest.raises(UserError):
                open_cached(folder)


def test_a_manifest_that_leaves_files_out_is_not_believed(tmp_path):
    folder = Input.pairs().fetch(tmp_path).folder
    assert folder is not None
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["held_out.arrow"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="leaves files out"):
        open_cached(folder)


def test_a_part_of_a_file_that_a_network_file_system_hands_out_at_first_is_not_damage(tmp_path, monkeypatch, caplog):
    first = Input.pairs().fetch(tmp_path)
    real, looks = sealed.find_damage, []

    def find_damage(folder: Path, expected: sealed.Digests) -> str | None:
        looks.append(folder)
        return real(folder, expected) if len(looks) > 1 else "train.arrow has 1 bytes"

    monkeypatch.setattr(sealed, "find_damage", find_damage)
    assert Input.pairs().fetch(tmp_path).folder == first.folder
    assert len(looks) == 2
    assert warnings(caplog) == []


def test_a_folder_under_the_name_of_other_rows_is_not_believed(tmp_path, caplog):
    one, other = Input.pairs(), Input.pairs(train=text_pairs(3))
    folders_of = [given.fetch(tmp_path).folder for given in (one, other)]
    assert folders_of[0] is not None
    assert folders_of[1] is not None
    folders_of[1].rename(tmp_path / "elsewhere")
    folders_of[0].rename(folders_of[1])
    assert len(other.fetch(tmp_path).tokenized.train) == 3
    assert any("other rows" in line for line in warnings(caplog))


def test_what_cannot_be_read_is_tokenised_again_and_left_alone(tmp_path, monkeypatch, caplog):
    given = Input.pairs()
    given.fetch(tmp_path)
    before = folders(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_file", refuse)
        found = given.fetch(tmp_path)
    assert found.folder is None
    check_same(found.tokenized, load_tokenized(given.splits(), given.tokenizer, given.config))
    assert any("cannot be read (Permission denied)" in line for line in warnings(caplog))
    assert folders(tmp_path) == before


def raising(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("target", "name", "number"),
    [(Path, "mkdir", errno.EROFS), (cache, "_write_table", errno.ENOSPC), (cache, "write_text", errno.EDQUOT)],
    ids=["read-only", "disk full", "quota"],
)
def test_a_root_that_cannot_be_written_is_warned_of_and_does_without(
    target, name, number, tmp_path, monkeypatch, caplog
):
    given = Input.pairs()
    with monkeypatch.context() as patch:
        patch.setattr(target, name, raising(number))
        found = given.fetch(tmp_path / "cache")
    check_same(found.tokenized, load_tokenized(given.splits(), given.tokenizer, given.config))
    assert found.folder is None
    assert len(warnings(caplog)) == 1
    assert os.strerror(number) in warnings(caplog)[0]
    assert folders(tmp_path / "cache") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_warned_of(tmp_path, caplog):
    tmp_path.chmod(0o500)
    assert len(Input.pairs().fetch(tmp_path / "cache").tokenized.train) == 4
    assert "cannot be kept" in warnings(caplog)[0]


def test_a_tokenizer_that_cannot_be_written_down_does_without(tmp_path, caplog):
    class Whole:
        def pre_tokenize(self, text: Any) -> None:
            text.split(lambda _, part: [part])

    given = Input.pairs()
    expected = load_tokenized(given.splits(), given.tokenizer, given.config)

    def customise(backend: Any) -> None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.PreTokenizer.custom(Whole())]
        )

    given.tokenizer = with_backend(customise)
    found = given.fetch(tmp_path)
    assert found.folder is None
    check_same(found.tokenized, expected)
    assert "cannot be written down" in warnings(caplog)[0]
    assert folders(tmp_path) == []


@pytest.mark.parametrize("max_length", [8, 2])
def test_refused_rows_store_nothing(max_length, tmp_path):
    on_long_prompt = OnBadRow.refuse if max_length == 8 else OnBadRow.skip  # then no row is left
    config = DataConfig(train="a.jsonl", max_length=max_length, on_long_prompt=on_long_prompt)
    for _ in range(2):
        with pytest.raises(UserError, match="data"):
            Input.pairs(config=config).fetch(tmp_path)
    assert folders(tmp_path) == []


def test_a_refused_held_out_row_stores_nothing(tmp_path):
    with pytest.raises(UserError, match=r"long\.jsonl:1"):
        Input.pairs(held_out=[PreferencePair("p" * 70, "a", "b", None, {}, "long.jsonl:1")]).fetch(tmp_path)
    assert folders(tmp_path) == []


@pytest.mark.parametrize("name", ["_write_table", "write_text"])
def test_a_kill_while_writing_leaves_nothing_under_the_name(name, tmp_path, monkeypatch):
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, name, die)
        with pytest.raises(KeyboardInterrupt):
            Input.pairs().fetch(tmp_path)
    assert folders(tmp_path) == []
    assert Input.pairs().fetch(tmp_path).folder is not None


def test_leftovers_of_killed_writers_are_removed_and_running_ones_are_not(tmp_path):
    now = time.time()
    for name, age in {"dead": 7200, "new": 10, "slow": 7200}.items():
        folder = tmp_path / f"{name}{PARTIAL}"
        folder.mkdir()
        (folder / "train.arrow").write_bytes(b"half")
        for path in (folder / "train.arrow", folder):
            os.utime(path, (now - age, now - age))
    os.utime(tmp_path / f"slow{PARTIAL}" / "train.arrow", (now, now))  # still being written to
    Input.pairs().fetch(tmp_path)
    assert [name for name in folders(tmp_path) if name.endswith(PARTIAL)] == [f"new{PARTIAL}", f"slow{PARTIAL}"]


def test_the_loser_of_a_race_uses_what_the_winner_wrote(tmp_path, monkeypatch, caplog):
    real, winners, times = cache._write, [], []

    def written(folder: Path) -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]

    def write(*arguments: Any) -> None:
        monkeypatch.setattr(cache, "_write", real)
        winners.append(Input.pairs().fetch(tmp_path))
        times.append(written(winners[0].folder))
        real(*arguments)

    monkeypatch.setattr(cache, "_write", write)
    loser = Input.pairs().fetch(tmp_path)
    assert loser.folder == winners[0].folder
    check_same(loser.tokenized, winners[0].tokenized)
    assert folders(tmp_path) == [loser.folder.name]
    assert written(loser.folder) == times[0]
    assert warnings(caplog) == []


def _fetch_at_once(root: str, barrier: Any, results: Any) -> None:
    given = Input.pairs(train=text_pairs(300))
    barrier.wait()
    found = given.fetch(Path(root))
    results.put((str(found.folder), Examples(None, found.tokenized, None).fingerprints()))  # type: ignore[arg-type]


def test_writers_at_the_same_time_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_fetch_at_once, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1]
    assert folders(tmp_path) == [Path(found[0][0]).name]


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gone.*manifest\.json is missing.*PREFOPT_CACHE"):
        open_cached(tmp_path / "gone")
