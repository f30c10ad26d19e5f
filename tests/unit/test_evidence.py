"""The evidence of a decision goes stale with anything that it rests on, and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from prefopt.config.load import load_config
from prefopt.evaluation.evidence import find_edit, find_stale, gather, seal_report
from tests.conftest import write_rows

SETTINGS = "the settings of the evaluation or its data, the seed or the precision"
BASE = "the base model or its settings"
OTHERS = "the model of a contestant or a judge"
FILES = "a chat template, a prompt, an example file, a schema, a rubric, or code of a judge or a task"


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

    assert stale("evaluation.min_gain=0.01") == [SETTINGS]
    assert stale("evaluation.judges=[classifier]") == [SETTINGS]
    assert stale("model=hf", "model.path=/elsewhere") == [BASE]
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
    assert stale() == [OTHERS], "it names tokens that end an answer"
    before = gather(load_config(settings), model)
    config = json.loads((far / "config.json").read_text())
    (far / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert stale() == [OTHERS]


def gather_all(settings: list[str], model: Path) -> dict[str, str | None]:
    """Returns the evidence, of which nothing may be missing: that would count as stale as well."""
    found = gather(load_config(settings), model)
    assert None not in found.values()
    return found


READING = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def touch(path: Path) -> None:
    """Gives a file other content, or makes one."""
    path.write_bytes((path.read_bytes() if path.is_file() else b"") + b" ")


@pytest.mark.parametrize("name", [*READING, "additional_chat_templates/short.jinja", "tokenizer.model", "vocab.txt"])
def test_what_a_model_reads_and_ends_answers_by_is_evidence(model, given, tmp_path, tiny_model, name):
    """By another chat template it is asked otherwise, although its weights are the same."""
    folders = {key: tmp_path / f"{key}_model" for key in ("base", "contestant", "judge", "reward")}
    for folder in folders.values():
        shutil.copytree(tiny_model, folder)
    settings = [
        *given, "model=hf", f"model.path={folders['base']}",
        f"evaluation.contestants=[base,tuned,{folders['contestant']}]",
        f"evaluation.judges=[{{kind: model, model: {folders['judge']}}}, "
        f"{{kind: reward_model, model: {folders['reward']}}}]",
    ]  # fmt: skip
    expected = {folders["base"]: BASE, **{folders[key]: OTHERS for key in ("contestant", "judge", "reward")}}
    for folder, what in {**expected, model: "the tuned model"}.items():
        before = gather_all(settings, model)
        (folder / name).parent.mkdir(exist_ok=True)
        touch(folder / name)
        assert find_stale(before, gather_all(settings, model)) == [what]


def test_the_base_of_an_adapter_that_answers_counts_as_well(model, given, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "below")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"1")
    named = {"base_model_name_or_path": str(tmp_path / "below")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    settings = [*given, f"evaluation.contestants=[base,tuned,{tmp_path / 'adapter'}]"]
    before = gather_all(settings, model)
    touch(tmp_path / "below" / "generation_config.json")
    assert find_stale(before, gather_all(settings, model)) == [OTHERS]


@pytest.mark.parametrize(
    "change",
    ["run.seed=7", "data.system='Be brief.'", "data.max_length=77", "data.as_chat=false", "data.max_rows=1",
     "data.on_bad=skip", "data.on_control_token=strip", "trainer.precision=bf16"],
)  # fmt: skip
def test_a_setting_that_changes_what_is_asked_or_measured_makes_it_stale(model, given, change):
    assert find_stale(gather_all(given, model), gather_all([*given, change], model)) == [SETTINGS]


def test_a_weight_of_a_mixture_counts_and_a_moved_file_does_not(model, given, tmp_path):
    def gathered(train: str) -> dict[str, str | None]:
        return gather_all([*given, f"data.train={train}"], model)

    before = gathered(f"[{{path: {tmp_path / 'train.jsonl'}}}]")
    assert find_stale(before, gathered(f"[{{path: {tmp_path / 'train.jsonl'}, weight: 2}}]")) == [SETTINGS]
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "moved.jsonl")
    assert find_stale(before, gathered(f"[{{path: {tmp_path / 'moved.jsonl'}}}]")) == []


@pytest.mark.parametrize(("setting", "name"), [("model.chat_template", "own.jinja"), ("data.system", "guide.txt")])
def test_the_content_of_a_file_that_a_setting_names_counts(model, given, tmp_path, setting, name):
    file = tmp_path / name
    file.write_text("{{ messages }}")
    settings = [*given, f"{setting}={file}"]
    before = gather_all(settings, model)
    touch(file)
    assert find_stale(before, gather_all(settings, model)) == [FILES]


def test_what_cannot_be_told_is_said_and_loses_no_report(model, given, tmp_path, caplog):
    """It is gathered after all is measured, when files may be gone."""
    config = load_config([*given, f"evaluation.contestants=[base,tuned,{tmp_path / 'run'}]"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a run without a model")
    (tmp_path / "held_out.jsonl").unlink()
    found = gather(config, model)
    assert (found["models"], found["data"]) == (None, None)
    assert find_stale(found, found) == [OTHERS, "the training or held-out files"]
    said = [record.message for record in caplog.records]
    assert any(text.startswith(f"evaluation: {OTHERS} cannot be told") for text in said)


LONG = "Answer as a kind and patient clerk would, who has read the whole guide and forgotten none of it. " * 5


@pytest.mark.parametrize("text", [LONG, "~nobody at home: be brief.", "prefopt: be brief.", "prefopt:gone", "a\0b"])
def test_a_text_of_one_line_is_no_file_however_it_begins(model, given, text):
    """It is read as a text, so that it must not be looked up as a file after all is measured."""
    told = {"name": "told", "system": text}
    judge = {"kind": "model", "name": "reader", "model": "/gone", "rubric": f"{text} {{prompt}} {{a}} {{b}}"}
    config = load_config(given)
    config.evaluation.contestants, config.evaluation.judges = [told], [judge]
    found = gather(config, model)
    assert None not in (found["settings"], found["files"])
    told["system"] += "!"
    assert find_stale(found, gather(config, model))[-1] == SETTINGS
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
