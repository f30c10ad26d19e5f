"""The shipped model configurations against the types of PEFT, transformers and TRL, without network."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prefopt.algorithms import load_algorithm
from prefopt.config.load import load_config
from prefopt.config.step_size import StepSize
from prefopt.models.load import build_peft_config
from prefopt.runs.directory import RunDirectory
from prefopt.training.arguments import build_arguments

ARCHITECTURES = {
    "llama3_1_8b": (LlamaConfig, LlamaForCausalLM),
    "llama3_2_1b": (LlamaConfig, LlamaForCausalLM),
    "mistral_7b": (MistralConfig, MistralForCausalLM),
    "qwen2_5_0_5b": (Qwen2Config, Qwen2ForCausalLM),
    "qwen2_5_7b": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3_0_6b": (Qwen3Config, Qwen3ForCausalLM),
    "smollm2_135m": (LlamaConfig, LlamaForCausalLM),
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_targets_exist_in_the_architecture(name, method):
    config = load_config([f"model={name}", f"peft={method}", "trainer.precision=bf16"])
    peft_config = build_peft_config(config.peft, config.model)
    assert isinstance(peft_config, LoraConfig)
    kind, architecture = ARCHITECTURES[name]
    model = get_peft_model(architecture(kind(**TINY)), peft_config)
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n, _ in model.named_parameters() if ".lora_A" in n}
    assert adapted == set(config.model.lora_targets)
    assert peft_config.use_dora == (method == "dora")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_arguments_are_accepted_by_trl(name, monkeypatch):
    config = load_config([f"model={name}", "peft=lora", "trainer.precision=bf16"])
    arguments = build_arguments(
        load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None)
    )
    assert arguments.bf16
    assert arguments.learning_rate == pytest.approx(1e-5)
