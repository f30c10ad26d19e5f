"""The benchmark of the reference store runs, and its numbers show that log-probs stay out of a process's memory."""

import json

import pytest

from benchmarks import reference_store, results


@pytest.mark.slow  # its processes load torch
def test_a_quick_run_writes_memory_and_times_of_both_phases(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    reference_store.main(["--pairs", "3000", "--write"])
    (path,) = tmp_path.glob("*/reference_store.json")
    fill, find = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert (fill["phase"], find["phase"]) == reference_store.PHASES
    assert find["peak_anonymous_bytes_per_pair"] < 2000, "of 4,096 bytes of log-probs"
    assert find["peak_bytes_per_pair"] > 4096, "every log-prob was read"
    assert "anonymous bytes/pair" in capsys.readouterr().out
