"""The evidence of a decision goes stale with anything that it rests on, and with nothing else."""

from pathlib import Path

import pytest

from prefopt.config.load import load_config
from prefopt.evaluation.evidence import find_stale, gather
from tests.conftest import write_rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("1")
    return tmp_path / "model"


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    (tmp_path / "guide.md").write_text("Be kind.")
    files = [write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name}]) for name in ("train", "held_out")]
    contestants = f"[base,tuned,{{name: told, system: {tmp_path / 'guide.md'}}}]"
    return [
        "data=files", f"data.train={files[0]}", f"data.held_out={files[1]}", f"evaluation.contestants={contestants}",
    ]  # fmt: skip


def test_nothing_is_stale_while_nothing_has_changed(model, given):
    before = gather(load_config(given), model)
    same = ["evaluation.batch_size=3", "evaluation.num_shown_samples=1", "trainer.log_every=7", "run.name=other"]
    assert find_stale(before, gather(load_config([*given, *same]), model)) == []


def test_whatever_it_rests_on_makes_it_stale(model, given, tmp_path):
    before = gather(load_config(given), model)

    def stale(*settings: str) -> list[str]:
        return find_stale(before, gather(load_config([*given, *settings]), model))

    assert stale("evaluation.min_gain=0.01") == ["the settings of the evaluation"]
    assert stale("evaluation.judges=[classifier]") == ["the settings of the evaluation"]
    assert stale("model=hf", "model.path=/elsewhere") == ["the base model's settings"]
    (tmp_path / "guide.md").write_text("Be unkind.")
    assert stale() == ["a prompt, an example file, a schema or a rubric"]
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": "other"}])
    (model / "manifest.json").write_text("2")
    assert set(stale()) == {
        "the tuned model", "the training or held-out files", "a prompt, an example file, a schema or a rubric",
    }  # fmt: skip
    assert len(find_stale({}, before)) == 5, "what was not recorded is stale"
