"""What `prefopt audit` makes of its arguments: which are files, and that commands that it shows can be typed."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.load import load_config
from prefopt.config.overrides import read_overrides
from prefopt.config.schema import DataConfig
from prefopt.data.audit.audit import command_for

ODD = ["date=2026-01-01/p.jsonl", "+p.jsonl", "p[1].jsonl", "a, 'b' {c}.jsonl", "$(x).jsonl"]


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_is_there_wins_over_an_override(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    assert load_config(read_overrides([name])).data.train == name
    Path("other.jsonl").touch()
    assert load_config(read_overrides(["other.jsonl", name])).data.train == ["other.jsonl", name]


@pytest.mark.parametrize("name", ODD)
def test_the_command_that_training_shows_reads_the_same_files(name: str) -> None:
    for train in (name, [name, "other.jsonl"], [{"path": name, "weight": 2}]):
        words = shlex.split(command_for(DataConfig(train=train, held_out=name), "preference"))
        config = load_config(read_overrides(words[2:]))
        assert (config.data.train, config.data.held_out) == (train, name)
