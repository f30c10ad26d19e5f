"""An evaluation without a run refuses what would be measured in vain before anything is measured."""

from pathlib import Path

import pytest

from prefopt.evaluate import main as evaluate
from prefopt.evaluation import duel
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.checked import check_answers
from prefopt.evaluation.statistics import Bootstrap
from tests.conftest import write_rows


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails):
    """Returns what an evaluation without a run is refused with."""

    def read(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr(duel, "_read", read)
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])

    def run(report: object, *settings: str) -> str:
        return fails(evaluate, [f"report={report}", f"data.held_out={rows}", *settings])

    return run


def test_it_needs_contestants(refused, tmp_path):
    told = refused(tmp_path / "out", "evaluation.contestants=[]")
    assert "evaluation.contestants=[base,{name: tuned, model: <folder>}]" in told


def test_pairs_of_sft_runs_have_no_silent_place_in_it(refused, tmp_path):
    told = refused(tmp_path / "out", "algorithm=sft", "evaluation.pairs=other.jsonl")
    assert told.startswith("error: evaluation.pairs=other.jsonl: has a meaning for an SFT run alone")


def test_several_ranks_do_not_all_measure(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "found 2 ranks. Start it without torchrun" in refused(tmp_path / "out")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_place_for_its_report(refused, tmp_path, place):
    (tmp_path / "file").write_text("kept")
    assert f"{tmp_path / 'file'} is a file" in refused(tmp_path / place)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("place", ["", ".", " "])
def test_the_current_folder_is_no_place_for_its_report(refused, place):
    assert "report=<folder>" in refused(place)


def test_where_nobody_answered_tasks_check_nothing(caplog):
    asked = [Asked("a:1", "prompt", None)]
    assert check_answers([{"kind": "json_schema"}], asked, {}, [], Bootstrap(50, 0)) == ({}, {})
    assert "no contestant has answers" in caplog.text
