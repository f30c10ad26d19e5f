"""The evidence of a decision goes stale with anything that it rests on, and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from prefopt.config.load import load_config
from prefopt.evaluation.evidence import find_edit, find_stale, gather, seal_report
from tests.conftest import write_rows

FILES = "a prompt, an example file, a schema, a rubric, or code of a judge or a task"


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
    assert stale("model=hf", "model.path=/elsewhere") == ["the base model or its settings"]
    (tmp_path / "guide.md").write_text("Be unkind.")
    assert stale() == [FILES]
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": "other"}])
    (model / "manifest.json").write_text("2")
    assert set(stale()) == {
        "the tuned model", "the training or held-out files", FILES,
    }  # fmt: skip
    assert len(find_stale({}, before)) == 6, "what was not recorded is stale"


def test_schemas_code_and_models_of_others_are_evidence_too(model, given, tmp_path, tiny_model, monkeypatch):
    """A judge, a task or a contestant that has changed would give another word."""
    monkeypatch.chdir(tmp_path)
    schema, code, far = tmp_path / "schema.json", tmp_path / "own_judge_code.py", tmp_path / "far"
    schema.write_text("{}")
    code.write_text("def points(prompt, answer):\n    return 1\n")
    shutil.copytree(tiny_model, far)
    settings = [
        *given, "evaluation.judges=[{kind: rule, function: 'own_judge_code:points'},"
        f"{{kind: model, name: reader, model: {far}}}]",
        f"evaluation.tasks=[{{kind: json_schema, schema: {schema}}}]",
    ]  # fmt: skip

    def stale() -> list[str]:
        return find_stale(before, gather(load_config(settings), model))

    before = gather(load_config(settings), model)
    assert stale() == []
    schema.write_text('{"type": "object"}')
    assert stale() == [FILES]
    schema.write_text("{}")
    code.write_text("def points(prompt, answer):\n    return 2\n")
    assert stale() == [FILES]
    code.write_text("def points(prompt, answer):\n    return 1\n")
    (far / "generation_config.json").write_text("{}")
    assert stale() == []
    config = json.loads((far / "config.json").read_text())
    (far / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert stale() == ["the model of a contestant or a judge"]


LONG = "Answer as a kind and patient clerk would, who has read the whole guide and forgotten none of it. " * 5


@pytest.mark.parametrize("text", [LONG, "~nobody at home: be brief.", "prefopt: be brief.", "prefopt:gone", "a\0b"])
def test_a_text_of_one_line_is_no_file_however_it_begins(model, given, text):
    """It is read as a text, so that it must not be looked up as a file after all is measured."""
    told = {"name": "told", "system": text}
    judge = {"kind": "model", "name": "reader", "model": "/gone", "rubric": f"{text} {{prompt}} {{a}} {{b}}"}
    config = load_config(given)
    config.evaluation.contestants, config.evaluation.judges = [told], [judge]
    found = gather(config, model)
    told["system"] += "!"
    assert find_stale(found, gather(config, model))[-1] == "the settings of the evaluation"
    assert found["files"] == gather(config, model)["files"]


def test_a_file_is_named_as_where_it_is_read(model, given, tmp_path):
    (tmp_path / "RUBRIC.MD").write_text("{prompt} {a} {b}")
    config = load_config(given)
    config.evaluation.judges = [{"kind": "model", "model": "/gone", "rubric": str(tmp_path / "RUBRIC.MD")}]
    before = gather(config, model)["files"]
    (tmp_path / "RUBRIC.MD").write_text("Which? {prompt} {a} {b}")
    assert gather(config, model)["files"] != before


def test_a_record_of_a_report_that_was_edited_is_named(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    assert find_edit(tmp_path) == "manifest.json is missing or damaged"
    seal_report(tmp_path)
    assert find_edit(tmp_path) is None
    (tmp_path / "report.json").write_text("[]")
    assert find_edit(tmp_path) == "report.json has another checksum"
