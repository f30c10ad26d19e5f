"""What identifies a model's weights: the content of its files, and nothing else."""

import json
import shutil
from types import SimpleNamespace

import pytest

from prefopt.config.load import load_config
from prefopt.config.schema import ModelConfig
from prefopt.models import fingerprint
from prefopt.models.fingerprint import fingerprint_reading, fingerprint_weights, read_model_files
from prefopt.models.reference import check_independence, open_store
from prefopt.process.errors import UserError


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def of(folder) -> str:
    return fingerprint_weights(ModelConfig(path=str(folder)))


def test_a_copy_has_the_same_fingerprint(folder, tiny_model):
    assert of(folder) == of(tiny_model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_changed_byte_of_what_decides_the_function_changes_it(folder, name):
    before = of(folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert of(folder) != before


@pytest.fixture
def sharded(folder):
    """The model with its weights where an index says, one of them in a folder below."""
    (folder / "shards").mkdir()
    (folder / "model.safetensors").rename(folder / "shards" / "one.safetensors")
    (folder / "more.weights").write_bytes(b"two")
    weight_map = {"a": "shards/one.safetensors", "b": "more.weights", "c": "shards/one.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "shards/one.safetensors", "more.weights"])
def test_an_index_and_all_files_that_it_names_decide_the_function(sharded, name):
    before = read_model_files(ModelConfig(path=str(sharded)))
    assert {"config.json", "model.safetensors.index.json", "shards/one.safetensors", "more.weights"} == {
        *before.digests
    }
    (sharded / name).write_bytes((sharded / name).read_bytes() + b" ")
    after = read_model_files(ModelConfig(path=str(sharded)))
    assert [each for each in before.digests if before.digests[each] != after.digests[each]] == [name]
    assert before.fingerprint() != after.fingerprint()


def test_weights_of_folders_below_that_no_index_names_do_not_count(sharded):
    before = of(sharded)
    (sharded / "checkpoint-5").mkdir()
    (sharded / "checkpoint-5" / "one.safetensors").write_bytes(b"other")
    assert of(sharded) == before


def test_large_files_in_folders_below_are_hashed_once(sharded, monkeypatch):
    monkeypatch.setattr(fingerprint, "REMEMBER_BYTES", 1)
    before = of(sharded)
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert of(sharded) == before


def test_files_that_do_not_decide_the_function_do_not_count(folder):
    before = of(folder)
    (folder / "README.md").write_text("a card")
    (folder / "optimizer.pt.txt").write_text("state")
    assert of(folder) == before


def test_what_a_model_reads_text_by_has_a_digest_of_its_own_and_is_no_part_of_the_weights(folder, tiny_model):
    """Results that are stored by the weights are of given token ids."""
    config = ModelConfig(path=str(folder))
    weights, before = of(folder), fingerprint_reading(config)
    assert before == fingerprint_reading(ModelConfig(path=str(tiny_model)))
    (folder / "README.md").write_text("a card")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert fingerprint_reading(config) == before
    shutil.copy(tiny_model / "config.json", folder)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        assert fingerprint_reading(config) != before
        before = fingerprint_reading(config)
    assert of(folder) == weights


def test_a_model_of_the_hub_has_the_digest_of_its_cached_snapshot(folder, tmp_path, monkeypatch):
    """Its files are links to blobs."""
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setattr(fingerprint, "cached_file", lambda path, name, **_: str(snapshot / name))
    assert fingerprint_reading(ModelConfig(path="org/model")) == fingerprint_reading(ModelConfig(path=str(folder)))


def test_large_files_are_hashed_once_and_again_when_they_change(folder, monkeypatch):
    monkeypatch.setattr(fingerprint, "REMEMBER_BYTES", 1)
    files = set(folder.iterdir())
    before = of(folder)
    assert set(folder.iterdir()) == files, "a model's folder stays as it is"
    hashed = []
    original = fingerprint.hashlib.file_digest
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda f, a: hashed.append(f.name) or original(f, a))
    assert of(folder) == before
    assert hashed == []
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert of(folder) != before
    assert hashed == [str(weights)]


def test_a_link_to_nothing_and_a_folder_are_no_weights(folder):
    before = of(folder)
    (folder / "pytorch_model.bin").symlink_to(folder / "gone")
    (folder / "openvino.bin").mkdir()
    assert of(folder) == before


def test_an_adapter_counts_together_with_its_base(folder, tiny_model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(folder / "model.safetensors", adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    before = of(adapter)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert of(adapter) != before


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights here"):
        of(folder)


BASE = ["model=hf", "data=files", "data.train=x.jsonl", "logger=none"]


def store_of(folder, *changes):
    return open_store(load_config([*BASE, f"model.path={folder}", *changes])).folder


@pytest.mark.parametrize(
    "change",
    [
        ["optim.learning_rate=1e-3"],
        ["algorithm.beta=0.5"],
        ["algorithm.loss_type=ipo"],
        ["algorithm.ld_alpha=0.5"],
        ["run.seed=7"],
        ["run.root=elsewhere"],
        ["peft=lora", "peft.r=3"],
        ["trainer.per_device_batch_size=2"],
        ["evaluation.batch_size=2"],
        ["engine=trl"],
        ["data.max_length=77"],
    ],
)
def test_what_does_not_change_a_log_prob_finds_the_same_store(folder, change):
    assert store_of(folder, *change) == store_of(folder)


@pytest.mark.parametrize(
    "change",
    [
        ["trainer.precision=bf16"],
        ["trainer.precision=bf16", "model.dtype=bf16", "peft=lora"],
        ["trainer.precision=bf16", "model.dtype=bf16", "peft=qlora"],
        ["model.attn_implementation=eager"],
    ],
)
def test_what_changes_a_log_prob_finds_another_store(folder, change):
    assert store_of(folder, *change) != store_of(folder)
    if "model.dtype=bf16" in change:
        assert store_of(folder, *change) != store_of(folder, "trainer.precision=bf16")


def test_the_key_names_all_that_decides_a_log_prob(folder):
    key = open_store(load_config([*BASE, f"model.path={folder}"])).key
    assert set(key) == {
        "format",
        "weights",
        "dtype",
        "precision",
        "quantised",
        "casts_weights",
        "numerics",
        "attention",
        "device",
        "transformers",
    }


def test_weights_that_deepspeed_casts_have_a_store_of_their_own(folder):
    config = load_config([*BASE, f"model.path={folder}", "trainer.precision=bf16"])
    assert open_store(config, casts_weights=True).folder != open_store(config).folder


@pytest.mark.parametrize("setting", ["trainer.extra.tf32=true", "trainer.precision=bf16"])
def test_other_arithmetic_has_a_store_of_its_own(folder, setting):
    assert store_of(folder, setting) != store_of(folder)


def test_what_a_trainer_leaves_beside_the_weights_does_not_count(folder):
    before = of(folder)
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
        (folder / name).write_bytes(b"state")
    assert of(folder) == before


def test_code_from_another_repository_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "org/code--m.M"}}))
    with pytest.raises(UserError, match="reference=live"):
        of(folder)


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_frequencies_that_depend_on_the_batch_need_a_live_reference(rope_type):
    rope = {"rope_type": rope_type, "factor": 2.0, "original_max_position_embeddings": 64}
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=128)
    config.get_text_config = lambda: config
    check_independence(config, 64)
    with pytest.raises(UserError, match=r"reference=live, or data\.max_length=64"):
        check_independence(config, 65)


@pytest.mark.parametrize("mode", ["live", "none"])
def test_other_modes_have_no_store(folder, mode):
    assert open_store(load_config([*BASE, f"model.path={folder}", f"reference={mode}"])) is None
