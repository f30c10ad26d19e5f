"""Model folders that are broken, that do not fit together, or whose context is shorter than the data."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from prefopt.config.load import load_config
from prefopt.config.schema import ModelConfig
from prefopt.models.limits import Limits, _read_context
from prefopt.models.load import find_base, load_model, load_tokenizer
from prefopt.process.errors import UserError
from prefopt.train import main as train
from tests.conftest import write_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model of one's own to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class Opens:
    """What a pickle of a stranger may do."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("pickle_was_run", "w")


def plant_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Opens(), file)


BROKEN = {
    "truncated": (truncate, "SafetensorError"),
    "other sizes": (lambda f: change(f / "config.json", hidden_size=64), "have other shapes than its config.json"),
    "more layers": (lambda f: change(f / "config.json", num_hidden_layers=3), "lack 9 tensors that its config.json"),
    "a tensor less": (drop_tensor, "lack 1 tensors that its config.json asks for, first model.norm.weight"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "cannot be loaded"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "unknown architecture": (lambda f: change(f / "config.json", model_type="x"), "cannot be loaded"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "tokenizer is {}": (lambda f: (f / "tokenizer.json").write_text("{}"), "damaged: copy or download it once more"),
    "tokenizer is empty": (lambda f: (f / "tokenizer.json").write_text(""), "cannot be loaded"),
    "a foreign pickle": (plant_pickle, "cannot be loaded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_sentence_before_anything_is_written(
    name, folder, overrides, tmp_path, fails, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    damage, expected = BROKEN[name]
    damage(folder)
    message = fails(train, [*overrides, f"model.path={folder}"])
    assert f"model.path={folder}: " in message
    assert expected in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "pickle_was_run").exists()


def test_weights_of_torch_are_loaded_without_running_them(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    before = load_model(ModelConfig(path=str(folder))).state_dict()
    (folder / "model.safetensors").unlink()
    after = load_model(ModelConfig(path=str(folder))).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_without_a_place_are_said(folder, caplog):
    change(folder / "config.json", num_hidden_layers=1)
    load_model(ModelConfig(path=str(folder)))
    assert any("9 of its stored tensors have no place" in line for line in caplog.messages)


def test_a_revision_of_a_folder_is_refused(overrides, tiny_model, fails):
    message = fails(train, [*overrides, "model.revision=main"])
    assert f"model.revision=main: {tiny_model} is a folder, and only models of the hub have revisions" in message


def test_a_chat_template_that_is_no_utf8_is_refused(overrides, tmp_path, fails):
    (tmp_path / "t.jinja").write_bytes(b"\xff")
    assert "t.jinja is no UTF-8" in fails(train, [*overrides, f"model.chat_template={tmp_path / 't.jinja'}"])


@pytest.fixture
def longer(folder: Path) -> Path:
    """Its tokenizer has a token that the embedding has no row for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_longer_than_the_embedding_is_refused_with_a_remedy_that_works(longer, overrides, tmp_path, fails):
    message = fails(train, [*overrides, f"model.path={longer}"])
    rows = json.loads((longer / "config.json").read_text())["vocab_size"]
    assert f"gives '<new>' the id {rows}, and its embedding has {rows} rows" in message
    assert "model.resize_embeddings=true" in message
    assert not (tmp_path / "runs").exists()
    for more in (["run.name=full"], ["run.name=lora", "peft=lora", "peft.r=2", "trainer.max_steps=2"]):
        train([*overrides, f"model.path={longer}", "model.resize_embeddings=true", *more])
        assert (tmp_path / "runs" / more[0].removeprefix("run.name=") / "report" / "report.json").exists()


def test_new_rows_are_the_mean_of_the_others_in_every_load(longer):
    config = ModelConfig(path=str(longer), resize_embeddings=True)
    first, second = load_model(config), load_model(config)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        weight = getattr(first, layer)().weight
        assert torch.equal(weight[-1], weight[:-1].mean(dim=0))
        assert torch.equal(weight, getattr(second, layer)().weight)
    assert first.config.vocab_size == len(load_tokenizer(config))


def test_an_embedding_cannot_grow_where_it_is_spread_over_ranks(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("prefopt.config.checks.find_spec", lambda name: object())
    with pytest.raises(UserError, match="Set deepspeed=zero2"):
        load_config(["deepspeed=zero3", "model.resize_embeddings=true"])


@pytest.mark.parametrize("path", ["runs/plant/model", "./runs/plants/modle"])
def test_a_mistyped_folder_is_told_with_the_one_that_is_there(path, tmp_path, monkeypatch):
    (tmp_path / "runs" / "plants" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_tokenizer(ModelConfig(path=path))
    looked = tmp_path / path
    assert str(error.value) == (
        f"model.path={path}: no such folder (looked for {looked}). Did you mean runs/plants/model?"
    )


def test_a_model_of_the_hub_that_cannot_be_had_is_told_with_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"or give a folder: model=hf model.path=<folder>\.$") as error:
        load_tokenizer(ModelConfig(path="runs/modle"))
    assert "Did you mean runs/model?" in str(error.value)


def test_an_adapter_that_names_no_base_is_told_with_what_to_write(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(UserError, match=r"adapter_config.json: names no base .* is null. Write there the folder"):
        find_base(ModelConfig(path=str(tmp_path)))


def test_an_adapter_whose_base_has_moved_names_the_file_to_mend(tiny_model, tmp_path, overrides, fails):
    from peft import LoraConfig, get_peft_model

    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(
        adapter
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    base.rename(tmp_path / "moved")
    message = fails(train, [*overrides, f"model.path={adapter}"])
    assert f"{adapter}/adapter_config.json: the adapter's base {base} is not there any more" in message
    change(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))
    assert find_base(ModelConfig(path=str(adapter))).path == str(tmp_path / "moved")
    assert load_model(ModelConfig(path=str(adapter))).config.vocab_size
    (adapter / "adapter_config.json").write_text("[]")
    assert "does not name the base of the adapter" in fails(train, [*overrides, f"model.path={adapter}"])


@pytest.fixture
def short(folder: Path) -> Path:
    """It reads 64 tokens at most."""
    change(folder / "config.json", max_position_embeddings=64)
    return folder


def test_rows_longer_than_the_context_are_refused_with_a_remedy_that_works(short, overrides, tmp_path, fails):
    rows = [{"prompt": f"Where is {n}?", "chosen": " Yes." * (5 if n else 60), "rejected": " No."} for n in range(8)]
    path = write_rows(tmp_path / "long.jsonl", rows)
    own = [
        *overrides,
        f"model.path={short}",
        f"data.train={path}",
        "data.held_out=null",
        "evaluation.max_new_tokens=4",
    ]
    message = fails(train, own)
    assert f"{path}:1 has " in message
    assert "reads at most 64 (1 such row). Set data.max_length=64" in message
    assert not (tmp_path / "runs").exists()
    train([*own, "data.max_length=64", "trainer.max_steps=1"])
    report = json.loads((tmp_path / "runs" / "test" / "report" / "report.json").read_text())
    assert any("truncated" in note or "cut" in note for note in report["data"]["notes"]), report["data"]["notes"]


@pytest.mark.parametrize(("long", "num_remedies"), [(range(8), 2), (range(1), 3)])
def test_answers_that_could_pass_the_context_are_refused_with_remedies_that_work(
    long, num_remedies, short, overrides, tmp_path, fails
):
    def pairs(name, questions):
        rows = [{"prompt": question, "chosen": " Yes.", "rejected": " No."} for question in questions]
        return write_rows(tmp_path / name, rows)

    questions = [f"Where is {n}?" + " Please." * 10 * (n in long) for n in range(8)]
    own = [
        *overrides,
        f"model.path={short}",
        f"data.train={pairs('train.jsonl', [f'Who is {n}?' for n in range(8)])}",
        f"data.held_out={pairs('held_out.jsonl', questions)}",
    ]
    message = fails(train, [*own, "evaluation.max_new_tokens=40", "evaluation.num_samples=8"])
    assert "evaluation.max_new_tokens=40: after the longest of the sampled prompts, " in message
    remedies = re.findall(r"(\w+\.\w+=\S+(?: \w+\.\w+=\S+)*) \(", message.partition("Set ")[2])
    assert len(remedies) == num_remedies
    assert not (tmp_path / "runs").exists()
    for number, remedy in enumerate(remedies):
        asked = ["evaluation.max_new_tokens=40", "evaluation.num_samples=8", *remedy.split()]
        train([*own, *asked, "trainer.max_steps=1", f"run.name=remedy{number}"])


def test_a_stretched_rotary_embedding_reads_more(tiny_model):
    assert Limits.of(ModelConfig(path=str(tiny_model))).context == 2048
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}
    assert _read_context(LlamaConfig(max_position_embeddings=1024, rope_parameters=yarn)) == 4096
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert _read_context(LlamaConfig(max_position_embeddings=1024, rope_parameters=linear)) == 2048
    assert _read_context(GPT2Config(n_positions=128)) == 128
    assert _read_context(object()) is None
