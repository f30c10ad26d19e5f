"""Public files converted: into their own system they are what they were, and into others they are read as equal."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import DataFormat
from prefopt.convert import main as convert
from prefopt.data.reading import read_records
from prefopt.process.errors import UserError
from tests.real_data.test_real_files import ALPACA, OPENAI_PAIRS, SHAREGPT_PAIRS, TOOL_CALLS, ULTRAFEEDBACK


def converted(path: Path, system: str, tmp_path: Path, *settings: str) -> list[Any]:
    """The rows of a file for a system."""
    output = tmp_path / f"{system}.jsonl"
    convert([str(path), "--to", system, "--output", str(output), *settings])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def rows_of(path: Path) -> list[Any]:
    text = gzip.decompress(path.read_bytes()).decode()
    return json.loads(text) if ".json." in path.name else [json.loads(line) for line in text.splitlines()]


def test_openai_pairs_come_back_as_they_were(shared_file: Any, tmp_path: Path) -> None:
    path = shared_file(OPENAI_PAIRS)
    found = converted(path, "openai", tmp_path)
    for row in (expected := rows_of(path)):
        for key in ("tools", "parallel_tool_calls"):
            row["input"].pop(key, None)
    assert found == expected


def test_sharegpt_pairs_come_back_as_they_were(shared_file: Any, tmp_path: Path) -> None:
    path = shared_file(SHAREGPT_PAIRS)
    assert converted(path, "llamafactory", tmp_path) == rows_of(path)


def test_tool_calls_come_back_as_they_were(shared_file: Any, tmp_path: Path) -> None:
    def parsed(row: dict[str, Any]) -> Any:
        turns = [
            {**turn, "value": json.loads(turn["value"])} if turn["from"] == "function_call" else turn
            for turn in row["conversations"]
        ]
        return turns, json.loads(row.get("tools") or "[]")

    path = shared_file(TOOL_CALLS)
    found = converted(path, "llamafactory", tmp_path, "algorithm=sft")
    assert [*map(parsed, found)] == [*map(parsed, rows_of(path))]


@pytest.mark.parametrize(
    ("name", "systems", "settings", "num_records"),
    [
        (OPENAI_PAIRS, ("gemini", "nova", "kto"), (), 284),
        (SHAREGPT_PAIRS, ("azure", "gemini"), (), 300),
        (ALPACA, ("openai", "anthropic"), ("algorithm=sft",), 999),
        (
            ULTRAFEEDBACK,
            ("together", "fireworks"),
            ("data.as_chat=true", "data.on_empty=skip", "data.on_identical=skip"),
            994,
        ),
    ],
)
def test_other_systems_get_the_same_pairs_and_demonstrations(
    shared_file: Any, tmp_path: Path, name: str, systems: tuple[str, ...], settings: tuple[str, ...], num_records: int
) -> None:
    kind: Any = "sft" if "algorithm=sft" in settings else "preference"
    read = {}
    for system in systems:
        converted(shared_file(name), system, tmp_path, *settings)
        path = str(tmp_path / f"{system}.jsonl")
        records = read_records(path, format=DataFormat.auto, kind=kind).records
        fields = ("messages", "tools") if kind == "sft" else ("prompt", "chosen", "rejected", "tools")
        read[system] = [[getattr(record, field) for field in fields] for record in records]
    first, *others = read.values()
    assert len(first) == num_records
    assert all(other == first for other in others)


def test_pairs_of_several_turns_and_tool_calls_are_refused_where_there_is_no_place_for_them(
    shared_file: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"rows \(.*one question of the user. Found"):
        converted(shared_file(SHAREGPT_PAIRS), "fireworks", tmp_path)
    with pytest.raises(UserError, match=r"there is no place for 'tools'"):
        converted(shared_file(TOOL_CALLS), "gemini", tmp_path, "algorithm=sft")
    assert [*tmp_path.iterdir()] == []
