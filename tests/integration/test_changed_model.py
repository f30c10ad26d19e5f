"""A run that goes on, goes on with the model that it began with, or says what is another one."""

import json
import shutil
from pathlib import Path

import pytest

from prefopt.evaluate import main as evaluate
from prefopt.runs.directory import RunDirectory, State
from prefopt.train import main as train

pytestmark = pytest.mark.slow


def left_unfinished(run: Path) -> None:
    """As a kill after the last step leaves it: the model and the report are still to come."""
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "report")
    RunDirectory(run).set_state(State.running)


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "base")


def edit_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.01}))


def test_a_changed_config_is_refused_until_it_is_put_back(overrides, tmp_path, model, fails):
    argv, run = [*overrides, f"model.path={model}"], tmp_path / "runs" / "test"
    train(argv)
    left_unfinished(run)
    content = (model / "config.json").read_bytes()
    edit_config(model)
    message = fails(train, argv)
    assert f"model.path={model} has changed since this run began (config.json)" in message
    assert not (run / "model").exists()
    (model / "config.json").write_bytes(content)
    train(argv)
    assert RunDirectory(run).read_status()["state"] == "done"


def test_weights_in_another_format_count_too(overrides, tmp_path, model, fails):
    import torch
    from safetensors.torch import load_file

    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    argv = [*overrides, f"model.path={model}"]
    train(argv)
    left_unfinished(tmp_path / "runs" / "test")
    torch.save({name: 2 * value for name, value in weights.items()}, model / "pytorch_model.bin")
    assert "(pytorch_model.bin)" in fails(train, argv)


def test_weights_in_a_folder_below_count_where_an_index_names_them(overrides, tmp_path, model, fails):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    (model / "shards").mkdir()
    (model / "model.safetensors").rename(model / "shards" / "one.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "shards/one.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    argv = [*overrides, f"model.path={model}"]
    train(argv)
    left_unfinished(tmp_path / "runs" / "test")
    changed = {name: 2 * value for name, value in weights.items()}
    save_file(changed, model / "shards" / "one.safetensors", metadata={"format": "pt"})
    assert "(shards/one.safetensors)" in fails(train, argv)


def test_the_base_below_an_adapter_counts_too(overrides, tmp_path, model, fails):
    train([*overrides, f"model.path={model}", "peft=lora", "run.name=adapter"])
    argv = [*overrides, f"model.path={tmp_path / 'runs' / 'adapter' / 'model'}"]
    train(argv)
    left_unfinished(tmp_path / "runs" / "test")
    edit_config(model)
    assert "(base/config.json)" in fails(train, argv)


def test_other_neutral_texts_are_refused(overrides, tmp_path, fails):
    texts = tmp_path / "neutral.jsonl"
    texts.write_text('{"text": "The sun rises in the east."}\n')
    argv = [*overrides, f"evaluation.neutral_texts={texts}"]
    train(argv)
    left_unfinished(tmp_path / "runs" / "test")
    texts.write_text('{"text": "The sun sets in the west."}\n')
    assert "evaluation.neutral_texts has changed since this run began" in fails(train, argv)


def test_a_moved_name_on_the_hub_is_refused_and_goes_on_by_its_commit(overrides, tmp_path, model, fails, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    edit_config(repository / "snapshots" / ("b" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    argv = [*overrides, "model.path=org/tiny"]
    train(argv)
    run = tmp_path / "runs" / "test"
    assert RunDirectory(run).read_provenance()["model"]["commit"] == "a" * 40
    left_unfinished(run)
    (repository / "refs" / "main").write_text("b" * 40)
    message = fails(train, argv)
    assert f"(config.json): it was commit {'a' * 40}, which model.revision={'a' * 40} names" in message
    train([*argv, f"model.revision={'a' * 40}"])
    assert RunDirectory(run).read_status()["state"] == "done"


def test_a_run_of_an_earlier_version_goes_on(overrides, tmp_path, model):
    argv, run = [*overrides, f"model.path={model}"], RunDirectory(tmp_path / "runs" / "test")
    train(argv)
    left_unfinished(run.path)
    provenance = run.read_provenance()
    weights = {"model.safetensors": provenance["model"]["sha256"]["model.safetensors"]}
    provenance["model"] = {"path": str(model), "revision": None, "sha256": weights}
    del provenance["data"]["sha256"]["neutral_texts"]
    run.provenance.write_text(json.dumps(provenance))
    train(argv)
    assert run.read_status()["state"] == "done"


def test_a_finished_run_is_not_measured_against_another_base(overrides, tmp_path, model, fails):
    train([*overrides, f"model.path={model}"])
    edit_config(model)
    report = tmp_path / "runs" / "test" / "report" / "report.json"
    before = report.read_bytes()
    assert "has changed since this run began (config.json)" in fails(evaluate, [f"run={tmp_path / 'runs' / 'test'}"])
    assert report.read_bytes() == before


def test_data_that_a_new_version_reads_otherwise_have_not_changed_and_are_not_said_to(overrides, tmp_path, fails):
    train(overrides)
    left_unfinished(tmp_path / "runs" / "test")
    path = tmp_path / "runs" / "test" / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["data"]["sha256"]["train"] = provenance["data"]["reader"] = "as an earlier version read them"
    provenance["versions"]["prefopt"] = "0.0.9"
    path.write_text(json.dumps(provenance))
    message = fails(train, overrides)
    assert "data.train is as when this run began, but this version reads it otherwise (prefopt 0.0.9 -> 0." in message
    assert "Go on with the version that began it, set run.name for a new run" in message
