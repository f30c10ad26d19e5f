"""The ledger of looks at test data: every look is counted, and the report says what they are worth."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from prefopt.config.limits import LimitsConfig
from prefopt.data.records import PreferencePair
from prefopt.evaluation.looks import LEDGER, digest_prompts, judge_looks, record_look
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from tests.conftest import write_rows


@pytest.fixture
def data(tmp_path) -> str:
    return str(write_rows(tmp_path / "test.jsonl", [{"prompt": "a"}]))


def run_of(root: Path, name: str, model: str = "1") -> RunDirectory:
    (root / name / "model").mkdir(parents=True, exist_ok=True)
    (root / name / "model" / "manifest.json").write_text(model)
    return RunDirectory(root / name)


def told(test: dict) -> tuple[str, bool, str]:
    (finding,) = judge_looks(test, LimitsConfig())
    return finding.level, finding.is_severe, finding.finding


def test_each_look_is_a_line_beside_the_runs(tmp_path, data):
    record_look(run_of(tmp_path / "runs", "a"), data)
    record_look(run_of(tmp_path / "runs", "b"), data)
    lines = [json.loads(line) for line in (tmp_path / "runs" / LEDGER).read_text().splitlines()]
    assert [line["run"] for line in lines] == ["a", "b"]
    assert lines[0]["sha256"] == lines[1]["sha256"]
    assert lines[0]["date"][:2] == "20"
    assert lines[0]["data"] == [data]


def test_a_run_that_is_measured_again_is_counted_and_not_warned_of(tmp_path, data):
    run = run_of(tmp_path, "a")
    assert told(record_look(run, data)) == ("info", False, "Test data: looked at for the first time.")
    assert told(record_look(run, data)) == ("info", False, "Test data: measured once before, for this run alone.")
    assert told(record_look(run, data))[2] == "Test data: measured 2 times before, for this run alone."


def test_a_second_run_makes_it_a_severe_warning_that_names_the_runs(tmp_path, data):
    record_look(run_of(tmp_path, "a"), data)
    second = record_look(run_of(tmp_path, "b"), data)
    level, is_severe, text = told(second)
    assert (level, is_severe, second["looks"], second["runs"]) == ("warning", True, 2, ["a", "b"])
    assert text.startswith("Test data: measured once before, also for a.")
    assert "becomes held-out data" in text
    assert told(record_look(run_of(tmp_path, "a"), data))[:2] == ("warning", True), "its number can be chosen by now"


def test_another_model_under_the_same_name_is_another_run(tmp_path, data):
    record_look(run_of(tmp_path, "a"), data)
    assert told(record_look(run_of(tmp_path, "a", model="2"), data))[:2] == ("warning", True)


def test_looks_are_those_at_the_same_content_whatever_the_name_of_the_file(tmp_path, data):
    record_look(run_of(tmp_path, "a"), data)
    copy = write_rows(tmp_path / "copy.jsonl", [{"prompt": "a"}])
    assert record_look(run_of(tmp_path, "b"), str(copy))["looks"] == 2
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "b"}])
    assert record_look(run_of(tmp_path, "b"), str(other))["looks"] == 1
    assert record_look(run_of(tmp_path, "a"), "hub:some/data:test")["looks"] == 1
    assert record_look(run_of(tmp_path, "b"), "hub:some/data:test")["looks"] == 2


def look_often(root: Path, name: str, data: str, results) -> None:
    results.put([record_look(run_of(root, name), data)["looks"] for _ in range(5)])


def test_looks_of_concurrent_evaluations_are_all_counted_and_none_twice(tmp_path, data):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=look_often, args=(tmp_path, f"run{n}", data, results)) for n in range(4)]
    for process in processes:
        process.start()
    counts = sorted(count for _ in processes for count in results.get(timeout=120))
    for process in processes:
        process.join()
    assert counts == list(range(1, 21))
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 20


def test_a_line_that_a_kill_cut_off_is_no_look_and_a_damaged_one_is_named(tmp_path, data):
    run = run_of(tmp_path, "a")
    record_look(run, data)
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"date": "2026')
    assert record_look(run, data)["looks"] == 2
    (tmp_path / LEDGER).write_text("broken\n" + (tmp_path / LEDGER).read_text())
    with pytest.raises(UserError, match=f"{LEDGER}:1: .*sed -i 1d"):
        record_look(run, data)


@pytest.mark.parametrize("place", ["prefopt.runs.lock.create", "prefopt.evaluation.looks.append_line"])
def test_a_look_that_cannot_be_written_down_is_refused(tmp_path, data, monkeypatch, place):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(place, refuse)
    with pytest.raises(UserError, match=rf"{LEDGER}: .*cannot be written"):
        record_look(run_of(tmp_path, "a"), data)


def test_the_same_prompts_in_another_file_are_the_same_data(tmp_path, data):
    pairs = [PreferencePair(text, "a", "b", None, {}, f"x:{i}") for i, text in enumerate("abc")]
    prompts = digest_prompts(pairs)
    assert prompts == digest_prompts(pairs[::-1])
    assert prompts != digest_prompts(pairs[:2])
    record_look(run_of(tmp_path, "a"), data, prompts)
    other = str(write_rows(tmp_path / "other.jsonl", [{"prompt": "a", "note": "another form"}]))
    assert record_look(run_of(tmp_path, "b"), other, prompts)["looks"] == 2
    assert record_look(run_of(tmp_path, "b"), other, digest_prompts(pairs[:1]))["looks"] == 2, "by the file's content"
