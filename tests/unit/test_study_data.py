"""The shipped study's rows: built again as they are, and each told by the area of its topic."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.load import load_config
from prefopt.data.loading import read_splits
from prefopt.evaluation.slices import FEWEST_PROMPTS
from prefopt.process.paths import shipped
from tests.conftest import read_rows

STUDY = shipped("experiments/brand_voice")
BUILT = ("train.jsonl", "sft_train.jsonl", "sft_held_out.jsonl")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STUDY, tmp_path / "study"))


def run(script: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)


def test_the_training_files_are_what_the_script_makes_of_the_cases(copied: Path) -> None:
    for name in BUILT:
        (copied / name).unlink()
    assert run(copied / "build_data.py").returncode == 0
    for name in BUILT:
        assert (copied / name).read_bytes() == (STUDY / name).read_bytes(), name


def test_every_row_has_the_area_of_its_topic_and_every_topic_one_area(copied: Path) -> None:
    checked = run(copied / "check_data.py")
    assert checked.returncode == 0, checked.stderr
    assert "held_out by area: care_and_use 22, choice 21" in checked.stdout
    table: dict[str, list[str]] = json.loads((STUDY / "material" / "areas.json").read_text())
    topics = Counter(topic for listed in table.values() for topic in listed)
    assert set(topics.values()) == {1}
    (first, *others) = read_rows(copied / "held_out.jsonl")
    other = next(area for area in table if area != first["area"])
    text = "".join(f"{json.dumps(row)}\n" for row in ({**first, "area": other}, *others))
    (copied / "held_out.jsonl").write_text(text)
    assert (
        f"held_out.jsonl:1: topic {first['topic']} is not of the area {other}" in run(copied / "check_data.py").stderr
    )


@pytest.mark.parametrize(("experiment", "kind"), [("dpo_brand_voice", "preference"), ("sft_brand_voice", "sft")])
def test_the_studys_rows_are_tagged_by_area(experiment: str, kind: Any) -> None:
    config = load_config([f"+experiment={experiment}"])
    splits = read_splits(config.data, kind=kind, seed=0)
    for rows in (splits.train, splits.held_out or []):
        assert len({row.tag for row in rows} - {""}) == 8
        assert all(row.tag for row in rows)


def test_each_area_has_enough_held_out_prompts_to_be_named() -> None:
    held_out = read_rows(STUDY / "held_out.jsonl")
    counts = Counter(row["area"] for row in held_out)
    assert 6 <= len(counts) <= 8
    assert min(counts.values()) >= FEWEST_PROMPTS
    assert len({row["topic"] for row in held_out}) == len(held_out), "topics alone are too fine to tell anything"
