"""The benchmark of `prefopt status` runs, writes what it says, and prints no time for a wrong answer."""

import json

import pytest

from benchmarks import results, status


def test_a_quick_run_writes_times_and_memory_of_every_form(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    status.main(["--runs", "40", "--rounds", "1", "--write"])
    (path,) = tmp_path.glob("*/status.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["command"] == "python -m benchmarks.status --runs 40 --rounds 1 --write"
    assert sum(written["states"].values()) == 40
    assert [row["form"] for row in written["results"]] == list(status.FORMS)
    assert all(row["min_s"] > 0 and row["peak_mib"] > 0 and row["output_bytes"] > 0 for row in written["results"])
    assert "median s" in capsys.readouterr().out


def test_no_time_is_printed_if_the_command_says_something_else_than_was_written(monkeypatch, capsys):
    monkeypatch.setitem(status.SLURM_WORDS, "queued", "RUNNING|node07")
    with pytest.raises(SystemExit, match="no time is printed"):
        status.main(["--runs", "40", "--rounds", "1"])
    assert "median s" not in capsys.readouterr().out
