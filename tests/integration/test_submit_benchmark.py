"""The benchmark of submitting measures the sweep that it says, and prints no time for another one."""

import json

import pytest

from benchmarks import results, submit

pytestmark = pytest.mark.slow


def test_a_quick_run_writes_seconds_and_memory_of_every_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    submit.main(["--points", "100", "--rounds", "2", "--write"])
    (path,) = tmp_path.glob("*/submit.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["command"] == "python -m benchmarks.submit --points 100 --rounds 2 --write"
    assert (written["points"], len(written["rounds"])) == (100, 2)
    assert 0 < min(each["seconds"] for each in written["rounds"]) <= written["seconds"]
    assert written["peak_rss_mib"] > 20  # no upper limit: a process starts with the peak of the one that forks it
    assert "100 points, 2 rounds" in capsys.readouterr().out


def test_a_sweep_of_another_size_gets_no_time():
    with pytest.raises(SystemExit, match="the sweep does not have 120 points"):
        submit.measure(120)
