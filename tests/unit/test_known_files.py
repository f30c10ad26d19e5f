"""Files that were read before: found again only if nothing has changed, and the same as if they were read."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import LossOn
from prefopt.config.schema import DataConfig
from prefopt.data.known_files import DataSet, Request
from prefopt.data.loading import Splits, read_splits
from tests.conftest import write_rows
from tests.unit.test_token_cache import check_same
from tests.unit.test_tokenize import CHATML, build_tokenizer


def rows(count: int = 20, answer: str = "yes") -> list[dict[str, str]]:
    return [{"prompt": f"question {i}: ", "chosen": f"{answer} {i}", "rejected": f"no {i}"} for i in range(count)]


class Start:
    """One start of a run: it counts how often rows are read."""

    def __init__(self, config: DataConfig, root: Path, *, seed: int = 0, measured: object = None, **changes: Any):
        self.num_reads = 0
        self.config, self.seed, self.measured = config, seed, measured
        request = Request(config, "preference", seed, changes.pop("loss_on", LossOn.completions), measured)
        self.data_set = DataSet(request, self.read, root)
        self.cached = self.data_set.fetch(build_tokenizer(changes.pop("template", CHATML)))

    def read(self) -> Splits:
        self.num_reads += 1
        return read_splits(self.config, kind="preference", seed=self.seed, measured=self.measured)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(train=str(write_rows(tmp_path / "train.jsonl", rows())), max_length=64)


def test_unchanged_files_are_not_read_and_give_the_same(config: DataConfig, tmp_path: Path) -> None:
    first, second = Start(config, tmp_path / "cache"), Start(config, tmp_path / "cache")
    assert (first.num_reads, second.num_reads) == (1, 0)
    check_same(second.cached.tokenized, first.cached.tokenized)
    assert second.cached.tokenized.train._fingerprint == first.cached.tokenized.train._fingerprint
    assert second.data_set.splits.notes == first.data_set.splits.notes


def test_rows_are_read_when_they_are_looked_at_but_those_held_out_come_from_the_cache(
    config: DataConfig, tmp_path: Path
) -> None:
    first, second = Start(config, tmp_path / "cache"), Start(config, tmp_path / "cache")
    assert list(second.data_set.splits.held_out or ()) == list(first.data_set.splits.held_out or ())
    assert second.num_reads == 0
    assert list(second.data_set.splits.train) == list(first.data_set.splits.train)
    assert second.num_reads == 1


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "measured": {"measured": "other.jsonl"},
    "held_out": {"held_out": "other.jsonl"},
    "held_out_fraction": {"held_out_fraction": 0.2},
    "max_length": {"max_length": 63},
    "columns": {"columns": {"prompt": "prompt"}},
    "system": {"as_chat": True, "system": "Be brief."},
    "template": {"template": CHATML.replace("user", "USER") + " "},
    "loss_on": {"loss_on": LossOn.all},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_reads_the_files(
    name: str, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "other.jsonl", [{"prompt": "x: ", "chosen": "a", "rejected": "b"}])
    Start(config, tmp_path / "cache")
    changed = {key: value for key, value in CHANGES[name].items() if key in DataConfig.__dataclass_fields__}
    others = {key: value for key, value in CHANGES[name].items() if key not in changed}
    assert Start(DataConfig(**{**vars(config), **changed}), tmp_path / "cache", **others).num_reads == 1


def test_a_changed_file_is_read_also_if_its_size_and_time_are_the_same(config: DataConfig, tmp_path: Path) -> None:
    Start(config, tmp_path / "cache")
    facts = os.stat(config.train)
    write_rows(tmp_path / "train.jsonl", rows(answer="YES"))
    os.utime(config.train, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = Start(config, tmp_path / "cache")
    assert second.num_reads == 1
    assert second.data_set.splits.train[0].chosen.startswith("YES")  # type: ignore[union-attr]


def test_another_system_prompt_in_the_same_file_reads_the_rows(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.")
    config = DataConfig(**{**vars(config), "as_chat": True, "system": str(tmp_path / "system.txt")})
    Start(config, tmp_path / "cache")
    (tmp_path / "system.txt").write_text("Be kind.")
    assert Start(config, tmp_path / "cache").num_reads == 1


def test_a_file_that_changes_while_it_is_read_is_read_again(config: DataConfig, tmp_path: Path) -> None:
    class Changing(Start):
        def read(self) -> Splits:
            splits = super().read()
            write_rows(tmp_path / "train.jsonl", rows(answer="new"))
            return splits

    before = Path(config.train).read_bytes()
    Changing(config, tmp_path / "cache")
    Path(config.train).write_bytes(before)
    assert Start(config, tmp_path / "cache").num_reads == 1


def test_a_warning_of_reading_is_told_at_every_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chats = [{name: [{"role": roles[name], "content": text}] for name, text in row.items()} for row in rows()]
    config = DataConfig(train=str(write_rows(tmp_path / "chats.jsonl", chats)), max_length=64, as_chat=True)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert Start(config, tmp_path / "cache").num_reads == 1
        assert "changes nothing" in caplog.text


def test_a_column_that_no_row_has_is_told_at_every_start(config: DataConfig, tmp_path: Path) -> None:
    config = DataConfig(**{**vars(config), "columns": {"system": "nowhere"}})
    for num_reads in (1, 0):
        start = Start(config, tmp_path / "cache")
        assert start.num_reads == num_reads
        assert any("nowhere" in line for line in start.cached.tokenized.notes.lines())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"key": "0"}'])
def test_a_damaged_entry_is_as_none(content: str, config: DataConfig, tmp_path: Path) -> None:
    Start(config, tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("by_files/*/*.json")
    assert json.loads(entry.read_text()).keys() == {"key"}
    entry.write_text(content)
    assert Start(config, tmp_path / "cache").num_reads == 1
    assert Start(config, tmp_path / "cache").num_reads == 0


def test_token_ids_that_are_gone_are_made_again(config: DataConfig, tmp_path: Path) -> None:
    first = Start(config, tmp_path / "cache")
    assert first.cached.folder is not None
    (first.cached.folder / "train.arrow").unlink()
    second = Start(config, tmp_path / "cache")
    assert second.num_reads == 1
    check_same(second.cached.tokenized, first.cached.tokenized)
