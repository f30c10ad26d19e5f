"""The benchmark of large data runs, and writes what it says."""

import json

import pytest

from benchmarks import data_scale, results

pytestmark = pytest.mark.slow


def test_a_small_run_writes_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    data_scale.main(["--pairs", "300", "--write"])
    (path,) = tmp_path.glob("*/data_scale.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["command"] == "python -m benchmarks.data_scale --pairs 300 --write"
    assert [row["part"] for row in written["results"]] == list(data_scale.PARTS)
    for row in written["results"]:
        assert row["pairs"] == 300
        assert row["pairs_per_s"] == pytest.approx(300 / row["seconds"])
        assert row["peak_gib"] > 0
    assert "start again" in capsys.readouterr().out


def test_rows_are_the_same_each_time_and_as_long_as_said():
    rows = list(data_scale.build_rows(500))
    assert rows == list(data_scale.build_rows(500))
    assert len(set(rows)) == 500
    assert 600 < sum(len(row.encode()) for row in rows) / 500 < 720
