"""Rows that are read and tokenised in blocks, by several processes: the same as in one piece, by this one."""

import gzip
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.algorithms import Kind
from prefopt.config.choices import OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.data import reading, table, tokenize
from prefopt.data.loading import read_splits
from prefopt.data.split import linked_prompts
from prefopt.data.token_splits import load_tokenized
from prefopt.process import parallel
from prefopt.process.errors import UserError
from tests.unit.test_tokenize import CHATML, build_tokenizer

NUM_ROWS = 120


@contextmanager
def in_processes(monkeypatch: pytest.MonkeyPatch, rows: int) -> Iterator[None]:
    """Reads and tokenises so many rows at once, in two processes, on a machine with any number of cores."""
    with monkeypatch.context() as patch:
        patch.setattr(reading, "BLOCK_ROWS", rows)
        patch.setattr(table, "PART_ROWS", rows)
        patch.setattr(tokenize, "CHUNK_ROWS", rows)
        for module in (parallel, reading):
            patch.setattr(module, "num_cores", lambda: 2)
        yield


def pair(rng: random.Random, number: int, **more: Any) -> dict[str, Any]:
    words = [rng.choice(["red", "green", "blue", "one", "two"]) for _ in range(6)]
    return {
        "prompt": f"{words[0]} {number // 2}?",
        "chosen": " ".join(words[1:4]),
        "rejected": " ".join(words[3:]) + "!",
        **more,
    }


def bad_pair(rng: random.Random, number: int) -> str:
    row = pair(rng, number)
    kinds = [
        lambda: "{not json",
        lambda: "[1, 2",
        lambda: "3",
        lambda: json.dumps({**row, "chosen": 5}),
        lambda: json.dumps({key: row[key] for key in ("prompt", "chosen")}),
        lambda: json.dumps({**row, "chosen": ""}),
        lambda: json.dumps({**row, "chosen": row["rejected"]}),
        lambda: json.dumps({"messages": [{"role": "user", "content": "x"}]}),
        lambda: json.dumps(row)[:-1] + ', "note": 1, "note": 2}',
        lambda: json.dumps(row)[:-1] + ', "chosen": "again"}',
        lambda: json.dumps({**row, "note": 1, "metadata": {"score_chosen": 3, "score_rejected": 1}}),
        lambda: json.dumps({"prompt": "p", "answer_a": "x", "answer_b": "y", "winner": "tie"}),
        lambda: json.dumps({"messages": [], "rank": 1}),
    ]
    return rng.choice(kinds)()


def write(path: Path, lines: list[str]) -> Path:
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def write_pairs(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    names = ["a.jsonl", "b.jsonl.gz"]
    for name in names:
        lines = [json.dumps(pair(rng, number)) for number in range(NUM_ROWS)]
        for _ in range(rng.choice([0, 6])):
            lines[rng.randrange(1, NUM_ROWS)] = bad_pair(rng, 1)
        write(folder / name, lines)
    train: Any = [str(folder / name) for name in names]
    if seed % 2:
        train = [{"path": path} for path in train]
    return DataConfig(train=train, held_out_fraction=0.2, on_bad=rng.choice([*OnBadRow]), columns={"system": "origin"})


def write_labelled(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    rows = [
        {"prompt": f"p{number}", "completion": f"c{number}", "label": rng.choice([True, True, False, "maybe"])}
        for number in range(NUM_ROWS)
    ]
    return DataConfig(train=str(write(folder / "l.jsonl", [*map(json.dumps, rows)])), on_bad=rng.choice([*OnBadRow]))


def write_kto(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    rows = [
        {"prompt": f"p{number % 7}", "completion": f"c{number}", "label": rng.random() < 0.5}
        for number in range(NUM_ROWS)
    ]
    return DataConfig(train=str(write(folder / "k.jsonl", [*map(json.dumps, rows)])))


def write_transcripts(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    rows = []
    for number in range(NUM_ROWS):
        start = f"\n\nHuman: {rng.choice('abc')} {number}\n\nAssistant:"
        rows.append({"chosen": f"{start} yes {number}", "rejected": f"{start} no"})
    return DataConfig(train=str(write(folder / "t.jsonl", [*map(json.dumps, rows)])), held_out_fraction=0.2)


def write_systems(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    rows = [pair(rng, number, **({"system": "Be kind."} if rng.random() < 0.3 else {})) for number in range(NUM_ROWS)]
    rows[rng.randrange(NUM_ROWS)]["topic"] = rng.choice(["late", 3, True, [1]])
    return DataConfig(train=str(write(folder / "s.jsonl", [*map(json.dumps, rows)])), tag="topic")


def write_words(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    words = rng.sample(["alpha", "beta", "good", "gamma"], 2 + seed % 2)
    rows = [
        {"prompt": f"p{number}", "completion": f"c{number}", "label": words[number * len(words) // NUM_ROWS]}
        for number in range(NUM_ROWS)
    ]
    return DataConfig(train=str(write(folder / "w.jsonl", [*map(json.dumps, rows)])))


def write_tagged(folder: Path, seed: int) -> DataConfig:
    rng = random.Random(seed)
    rows = [pair(rng, number) for number in range(NUM_ROWS)]
    for row in rows[-1:] if seed % 3 == 0 else rows[60:] if seed % 3 == 1 else []:
        row["topic"] = rng.choice(["billing", 3, None, ["x"], True])
    config = DataConfig(train=str(write(folder / "g.jsonl", [*map(json.dumps, rows)])), tag="topic")
    config.on_bad = OnBadRow.skip
    return config


WRITERS = {
    "words": (write_words, "sft"),
    "tagged": (write_tagged, "preference"),
    "pairs": (write_pairs, "preference"),
    "labelled": (write_labelled, "sft"),
    "kto": (write_kto, "preference"),
    "transcripts": (write_transcripts, "preference"),
    "systems": (write_systems, "preference"),
}


def outcome(config: DataConfig, kind: Kind) -> Any:
    """Everything that comes of reading and tokenising: rows, ids and counts, or the error."""
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    try:
        splits = read_splits(config, kind=kind, seed=1)
        tokenized = load_tokenized(splits, tokenizer, config)
    except UserError as error:
        return str(error)
    sides = [tokenized.train, *([] if tokenized.held_out is None else [tokenized.held_out])]
    return (
        [asdict(record) for side in (splits.train, splits.held_out or ()) for record in side],
        splits.notes.to_dict(),
        [side.to_dict() for side in sides],
        list(splits.notes.lines()),
        linked_prompts(splits.train),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", WRITERS)
def test_blocks_in_processes_come_to_the_same(
    name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, kind = WRITERS[name]
    config = writer(tmp_path, seed)
    expected = outcome(config, kind)  # NUM_ROWS are fewer than a block
    with in_processes(monkeypatch, rows=7):
        assert outcome(config, kind) == expected
    with in_processes(monkeypatch, rows=1):
        assert outcome(config, kind) == expected


def test_the_cases_hold_what_they_are_for(tmp_path: Path) -> None:
    outcomes = []
    for seed in range(6):
        for name, (writer, kind) in WRITERS.items():
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            outcomes.append(outcome(writer(folder, seed), kind))
    errors = [each for each in outcomes if isinstance(each, str)]
    assert 3 <= len(errors) <= len(outcomes) - 15
    assert any("reasons" in error for error in errors)
    assert any("no row of data.train has such a column" in error for error in errors)
    read = [each for each in outcomes if not isinstance(each, str)]
    assert any("has two values" in line for each in read for line in each[3])
    assert any(record["tag"] for each in read for record in each[0])


def test_an_error_of_the_file_is_told_at_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"})] * 90
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')
    config = DataConfig(train=str(path))
    with in_processes(monkeypatch, rows=5), pytest.raises(UserError, match=r"bad\.jsonl:91: not valid UTF-8"):
        read_splits(config, kind="preference", seed=1)


def test_several_processes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would say nothing if the rows were read here."""
    begun: list[tuple[str, int]] = []
    original = parallel.map_in_processes

    def watched(work: Any, items: Any, *, num_processes: int, doing: str) -> Any:
        begun.append((doing, num_processes))
        return original(work, items, num_processes=num_processes, doing=doing)

    for module in (reading, table, tokenize):
        monkeypatch.setattr(module, "map_in_processes", watched)
    config = write_systems(tmp_path, 1)
    with in_processes(monkeypatch, rows=5):
        outcome(config, "preference")
    assert ("tokenising", 2) in begun
    assert begun.count(("reading", 2)) >= 3
