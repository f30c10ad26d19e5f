"""All kinds of judges in one run, by the command that a user types."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from prefopt.evaluate import main as evaluate
from prefopt.train import main as train
from tests.chat_server import ChatServer, Given, says
from tests.conftest import STUDY, quick_run, read_rows, write_rows

pytestmark = pytest.mark.slow

KEY = "sk-secret-0123456789"


def longer_wins(request: dict[str, Any], _: int) -> Given:
    asked = request["messages"][0]["content"]
    a, b = (
        re.search(rf"\[Answer {each}\]\n(.*)\n\[End of answer {each}\]", asked, re.S).group(1)  # type: ignore[union-attr]
        for each in "AB"
    )
    return says(f"By its length: [[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]")


def evaluated(asked: list[str]) -> dict[str, Any]:
    """The report that an evaluation of a run writes."""
    evaluate(asked)
    return json.loads((Path(asked[0].removeprefix("run=")) / "report" / "report.json").read_text())


def test_every_kind_of_judge_reads_a_run_and_stands_in_its_report(tiny_model, tmp_path, monkeypatch, caplog):
    for package in ("openai", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    files = [
        write_rows(tmp_path / f"{name}.jsonl", read_rows(STUDY / f"{name}.jsonl", num))
        for name, num in (("train", 30), ("held_out", 8))
    ]
    train([*quick_run(tiny_model, files, tmp_path / "runs"), "trainer.max_steps=2", "evaluation.regression=null"])
    with caplog.at_level(logging.DEBUG), ChatServer(longer_wins) as server:
        judges = [
            "{kind: rule, patterns: [e, t]}",
            "classifier",
            f"{{kind: model, model: '{tiny_model}'}}",
            f"{{kind: endpoint, endpoint: '{server.url}', model: m, key_env: JUDGE_KEY}}",
            "{kind: panel, of: [rule, classifier, endpoint]}",
        ]
        asked = [
            f"run={tmp_path / 'runs' / 'test'}",
            f"evaluation.judges=[{','.join(judges)}]",
            "evaluation.contestants=[base,tuned]",
        ]
        report, num_sent = evaluated(asked), len(server.requests)
        again = evaluated(asked)
        assert len(server.requests) == num_sent > 0  # the second evaluation finds its replies in the cache
    assert [each["judge"] for each in report["win_rates"]] == ["rule", "classifier", "model", "endpoint", "panel"]
    assert report["win_rates"] == again["win_rates"]
    facts = {name: judge["facts"] for name, judge in report["judges"].items()}
    assert facts["endpoint"]["num_parsed"] == facts["endpoint"]["num_read"] > 0
    assert facts["endpoint"]["num_requests"] == num_sent
    assert again["judges"]["endpoint"]["facts"]["num_requests"] == 0
    assert facts["classifier"]["accuracy"]["n"] == 30
    assert facts["panel"]["of"].keys() == {"rule", "classifier", "endpoint"}
    assert report["judges"]["endpoint"]["consistency"] == 1
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert KEY not in caplog.text, "a log shows the key"
    assert not any(KEY.encode() in content for content in written)
