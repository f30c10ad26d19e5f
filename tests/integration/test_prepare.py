"""`prefopt prepare` before, between and after attempts of a run in the same folder."""

import json
from pathlib import Path

import pytest

from prefopt.prepare import main as prepare
from prefopt.train import main as train
from tests.conftest import write_rows


@pytest.fixture
def settings(overrides: list[str], tmp_path: Path) -> list[str]:
    """A run whose report measures neutral texts too."""
    texts = write_rows(tmp_path / "neutral.jsonl", [{"text": "Rain fell on the roofs of the town all night."}])
    return [*overrides, f"evaluation.neutral_texts={texts}"]


def content(run: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with its bytes."""
    return {str(p.relative_to(run)): p.read_bytes() if p.is_file() else None for p in sorted(run.rglob("*"))}


def test_a_run_may_be_prepared_before_and_after_it(settings, tmp_path, capsys):
    run = tmp_path / "runs" / "test"
    prepare(settings)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    train(settings)
    before = content(run)
    capsys.readouterr()
    prepare(settings)
    said = capsys.readouterr().out
    assert "training has begun here, so this folder stays as it is" in said
    assert "prepared: runs with this model and these data find" in said
    assert content(run) == before
    train(settings)
    assert "this run is done" in capsys.readouterr().out
    prepare([*settings, "run.overwrite=true"])
    assert content(run) == before


def test_an_interrupted_run_that_is_prepared_goes_on(settings, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "test"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prefopt.training.runner.evaluate_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    before = content(run)
    prepare(settings)
    assert content(run) == before
    train(settings)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["attempts"]) == ("done", 6, 2)


def test_what_the_store_has_lost_is_filled_again_for_a_trained_run(settings, tmp_path, monkeypatch, capsys):
    train(settings)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "emptied"))
    prepare(settings)
    capsys.readouterr()
    train([*settings, "run.name=other"])
    output = capsys.readouterr()
    assert "reference: train: 22 of 22 pairs from the store" in output.out + output.err
