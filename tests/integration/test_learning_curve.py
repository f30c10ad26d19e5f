"""The learning curve of a tiny model, with real trainings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt import load_config, train
from prefopt.audit import main as audit
from prefopt.process.console import build_console
from prefopt.sweeps import learning_curve
from prefopt.sweeps.learning_curve import measure_learning_curve
from tests.conftest import STUDY, read_rows, write_rows

pytestmark = pytest.mark.slow


def test_the_curve_has_the_accuracies_of_the_reports(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_curve, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(learning_curve, "NUM_SEEDS", 2)
    pairs = write_rows(tmp_path / "pairs.jsonl", read_rows(STUDY / "train.jsonl", 44))
    config = load_config(
        [
            "model=hf",
            f"model.path={tiny_model}",
            "data=files",
            f"data.train={pairs}",
            "data.held_out_fraction=0.27",
            "logger=none",
            "optim.learning_rate=1e-3",
            "trainer.per_device_batch_size=4",
            "evaluation.bootstrap_resamples=20",
        ]
    )
    curve = measure_learning_curve(config, tmp_path / "curve", train, build_console())
    reports = [json.loads(path.read_text()) for path in (tmp_path / "curve").glob("*/report/report.json")]
    reported = {
        (report["run"]["data"]["num_train"], report["run"]["seed"]): report["held_out"]["tuned"]["preference_accuracy"]
        for report in reports
    }
    assert len(reported) == 4
    for point in curve.points:
        assert point.hits.mean() == pytest.approx(reported[point.n, point.seed]["value"])
        assert point.steps == 8  # all see 32 pairs, the halves twice
    base = {report["held_out"]["base"]["preference_accuracy"]["value"] for report in reports}
    assert base == {curve.base.value if curve.base else None}


def test_an_audit_with_a_learning_curve_says_what_was_found_and_how_much_more_data_help(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learning_curve, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(learning_curve, "NUM_SEEDS", 1)
    pairs = write_rows(tmp_path / "pairs.jsonl", read_rows(STUDY / "train.jsonl", 44))
    settings = ["data.held_out_fraction=0.27", "trainer.max_steps=2", "data/gate=off"]
    audit(
        [str(pairs), "model=hf", f"model.path={tiny_model}", *settings, "--output", str(tmp_path), "--learning-curve"]
    )
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["checks"]
    assert [size["n"] for size in written["learning_curve"]["by_n"]] == [16, 32]
    assert "Enough data?" in (tmp_path / "audit.html").read_text()
    shown = capsys.readouterr().out
    assert "held-out prompts that show a gain" in shown


def test_a_learning_curve_needs_a_folder(fails: Callable[..., str]) -> None:
    assert "--output <folder>" in fails(audit, ["pairs.jsonl", "--learning-curve"])
