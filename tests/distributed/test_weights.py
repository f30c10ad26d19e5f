"""Partitioned models on disk: byte for byte what `save_pretrained` writes, with one shard in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel
from transformers.conversion_mapping import get_model_conversion_mapping

from tests.conftest import REPOSITORY
from tests.tiny_models import EXPERTS, SUPPORTED, Tiny, build

pytest.importorskip("deepspeed")

from prefopt.distributed.weights import find_obstacle, save_partitioned
from tests.distributed.save_models import CASES, SHARD

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTERS = {
    "lora": {},
    "dora": {"use_dora": True},
    "lora_and_head": {"modules_to_save": ["lm_head"]},
    "trained_lora": {},
}
STREAMED = ["untied", "tied", "sharded", "trained", "renamed"]


def build_full(name: str) -> Any:
    if name == "renamed":
        return build_bert()
    if name == "experts":
        return build(Tiny("Mixtral", EXPERTS))
    model = build(SUPPORTED["llama_tied" if name == "tied" else "llama"])
    return model.to(torch.bfloat16) if CASES[name].bf16 else model


def build_bert() -> Any:
    """A model with keys (`LayerNorm.weight`) that were once spelt otherwise, so loading has renamings for them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertLMHeadModel(BertConfig(vocab_size=200, is_decoder=True, **sizes))


def write_plain(name: str, root: Path) -> None:
    folder, case = root / name / "plain", CASES[name]
    if name not in ADAPTERS:
        build_full(name).save_pretrained(root / name / "built")
        loaded = AutoModelForCausalLM.from_pretrained(root / name / "built", dtype="auto")
        loaded.save_pretrained(folder, max_shard_size=case.max_shard_bytes)
        return
    base = AutoModelForCausalLM.from_pretrained(root / case.base / "plain")
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], **ADAPTERS[name])
    )
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, adapted.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all cases written by both, from one launch: starting processes is what takes the time."""
    root = tmp_path_factory.mktemp("weights")
    for name in CASES:
        write_plain(name, root)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    finished = subprocess.run(
        [*launch, "-m", "tests.distributed.save_models", str(root)],
        cwd=REPOSITORY,
        env=environment | {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-5000:]
    return root


def seen(root: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a rank saw in a case."""
    found: dict[str, Any] = json.loads((root / f"rank{rank}.json").read_text())[name]
    return found


def assert_same_folder(saved: Path, plain: Path) -> None:
    """The same files; in each the same keys, types, shapes, bits and header, and in JSON the same values."""
    assert sorted(path.name for path in saved.iterdir()) == sorted(path.name for path in plain.iterdir())
    for path in plain.glob("*.json"):
        assert json.loads((saved / path.name).read_text()) == json.loads(path.read_text()), path.name
    for path in plain.glob("*.safetensors"):
        assert_same_tensors(saved / path.name, path)


def assert_same_tensors(saved: Path, plain: Path) -> None:
    with safe_open(saved, "pt") as one, safe_open(plain, "pt") as other:
        assert one.metadata() == other.metadata()
    tensors, expected = load_file(saved), load_file(plain)
    assert tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor), key


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=torch.arange(5, 25).reshape(2, -1)).logits
    return result


@pytest.mark.parametrize("name", STREAMED)
def test_a_partitioned_model_is_saved_as_the_plain_one(root, name):
    plain, saved = root / name / "plain", root / name / "saved"
    found = seen(root, name)
    assert found["num_partitioned"] > 0
    assert (found["num_whole"] > 0) == (name == "trained")  # after a step every rank holds the norms whole
    assert found["obstacle"] is None
    if name == "trained":  # what transformers writes of a partitioned model today counts parameters of size 0
        index = json.loads((plain / INDEX).read_text())
        index["metadata"]["total_parameters"] = json.loads((saved / INDEX).read_text())["metadata"]["total_parameters"]
        (plain / INDEX).write_text(json.dumps(index))
    assert_same_folder(saved, plain)
    model, expected = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (saved, plain))
    assert torch.equal(logits(model), logits(expected))


def test_experts_that_transformers_fused_are_saved_apart_by_the_whole_state_dict(root):
    assert "mlp.experts" not in str(load_file(root / "experts" / "saved" / WEIGHTS).keys())
    assert "block_sparse_moe.experts.0.w2.weight" in seen(root, "experts")["obstacle"]
    assert_same_folder(root / "experts" / "saved", root / "experts" / "plain")


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_partitioned_adapter_is_saved_as_the_plain_one(root, name):
    plain, saved, base = root / name / "plain", root / name / "saved", root / "untied" / "plain"
    assert seen(root, name)["num_partitioned"] > 0
    assert sorted(path.name for path in saved.iterdir()) == sorted(path.name for path in plain.iterdir())
    assert_same_tensors(saved / ADAPTER, plain / ADAPTER)
    config, expected = (json.loads((folder / "adapter_config.json").read_text()) for folder in (saved, plain))
    assert {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()} == {
        key: sorted(value) if isinstance(value, list) else value for key, value in expected.items()
    }
    adapted, plainly_adapted = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder) for folder in (saved, plain)
    )
    assert torch.equal(logits(adapted), logits(plainly_adapted))
    assert not torch.equal(logits(adapted), logits(AutoModelForCausalLM.from_pretrained(base)))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].base is not None])
def test_only_what_an_adapter_holds_is_gathered(root, name):
    # Rank 0 holds the adapter at once; a partitioned tensor is padded to a multiple of the two ranks.
    tensors = load_file(root / name / "saved" / ADAPTER).values()
    assert seen(root, name)["peak_bytes"] <= sum(tensor.nbytes + tensor.element_size() for tensor in tensors)


def test_rank_0_holds_one_shard_and_one_parameter(root):
    tensors = {}
    files = sorted((root / "sharded" / "saved").glob("model-*.safetensors"))
    for file in files:
        tensors |= load_file(file)
    sizes = [tensor.nbytes for tensor in tensors.values()]
    assert len(files) >= 3
    assert sum(sizes) > 2 * (SHARD + max(sizes))
    assert max(sizes) <= seen(root, "sharded")["peak_bytes"] <= SHARD + max(sizes)
    assert seen(root, "sharded", rank=1)["peak_bytes"] <= 2 * max(sizes)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_model_is_left_as_it_was(root, name, rank):
    assert seen(root, name, rank)["statuses_are_as_before"]


def test_when_the_disk_is_full_every_rank_returns_and_rank_0_says_so(root):
    found = seen(root, "disk_full")
    assert found["error"] == "[Errno 28] No space left on device"
    assert seen(root, "disk_full", rank=1)["error"] is None
    assert len(found["files"]) == 2  # nothing more is written
    assert not (root / "disk_full" / "saved" / INDEX).exists()


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_model_that_is_not_partitioned_is_saved_as_it_is(tmp_path, name):
    model = build(SUPPORTED[name])
    model.save_pretrained(tmp_path / "plain", max_shard_size=SHARD)
    save_partitioned(model, tmp_path / "saved", max_shard_bytes=SHARD)
    assert_same_folder(tmp_path / "saved", tmp_path / "plain")


def test_renamings_that_loading_did_not_use_are_not_reverted():
    # Loading under ZeRO-3 notes them all.
    model = build_bert()
    model._weight_conversions = get_model_conversion_mapping(model)
    assert model._weight_conversions
    assert find_obstacle(model) is None
    assert model._weight_conversions == []
