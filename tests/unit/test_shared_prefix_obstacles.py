"""What cannot share prompts is refused by name before training; what slips through is refused at the first call."""

import peft
import pytest
import torch
import transformers

from prefopt.models.shared_prefix import SharedPrefix, find_obstacle
from prefopt.models.shared_prefix.attention import UnsupportedAttentionError
from tests.tiny_models import EXPERTS, GPT2, SUPPORTED, WINDOW, Tiny, build, pair_batch

RECURRENT = "carries a state from token to token"
OTHER_ATTENTION = "does not compute attention through transformers' attention interface"
LINEAR_HEADS = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
REFUSED = {
    "mamba": (Tiny("Mamba", {"state_size": 4}), RECURRENT),
    "qwen3_next": (
        Tiny("Qwen3Next", EXPERTS | LINEAR_HEADS | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 16}),
        RECURRENT,
    ),
    "lfm2": (Tiny("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}), "conv layers"),
    "minimax": (Tiny("MiniMax", EXPERTS), "linear_attention layers"),
    "mixtral": (Tiny("Mixtral", EXPERTS), "auxiliary router loss"),
    "mixtral_that_returns_routing": (
        Tiny("Mixtral", EXPERTS | {"router_aux_loss_coef": 0.0, "output_router_logits": True}),
        "auxiliary router loss",
    ),
    "gpt_oss": (Tiny("GptOss", EXPERTS | {"router_aux_loss_coef": 0.0}), "attention sinks"),
    "gemma3_bidirectional": (Tiny("Gemma3", WINDOW | {"use_bidirectional_attention": True}), "not causal"),
    "roberta": (Tiny("Roberta"), "not causal"),
    "attention_dropout": (Tiny("Llama", {"attention_dropout": 0.1}), "drops attention weights"),
    "roberta_decoder": (Tiny("Roberta", {"is_decoder": True}), "counts positions from its padding token"),
    "bloom": (Tiny("Bloom", {"n_layer": 2, "n_head": 4}), OTHER_ATTENTION),
    "mpt": (Tiny("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}), OTHER_ATTENTION),
    "falcon_alibi": (Tiny("Falcon", {"alibi": True}), OTHER_ATTENTION),
    "gptj": (Tiny("GPTJ", GPT2 | {"rotary_dim": 4}), OTHER_ATTENTION),
    "stablelm": (Tiny("StableLm"), OTHER_ATTENTION),
}
HIDDEN_RULE = {
    "nemotron": (Tiny("Nemotron", {"head_dim": 8}), "NemotronAttention is not handed what its model is called with"),
    "phimoe": (Tiny("Phimoe", EXPERTS | WINDOW | {"router_aux_loss_coef": 0.0}), "PhimoeAttention uses a sliding"),
    "doge": (Tiny("Doge", {"router_aux_loss_coef": 0.0}), "DogeAttention uses a mask of its own"),
    "gpt_oss": (REFUSED["gpt_oss"][0], "GptOssAttention uses s_aux"),
}


def test_an_attention_implementation_that_looks_at_its_own_name_is_refused():
    model = build(SUPPORTED["llama"])
    model.config._attn_implementation = "flash_attention_2"
    assert "model.attn_implementation=flash_attention_2" in find_obstacle(model)


TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_model_has_no_obstacle(name):
    assert find_obstacle(build(SUPPORTED[name])) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_share_is_refused_by_name_and_reason(name):
    tiny, reason = REFUSED[name]
    model = build(tiny)
    obstacle = find_obstacle(model)
    assert type(model).__name__ in obstacle
    assert reason in obstacle


def test_chunked_attention_is_refused():
    config = transformers.Llama4TextConfig(
        **TEXT, intermediate_size_mlp=16, num_local_experts=2, attention_chunk_size=8, router_aux_loss_coef=0.0
    )
    obstacle = find_obstacle(transformers.Llama4ForCausalLM(config))
    assert "Llama4ForCausalLM has chunked_attention layers" in obstacle


def test_a_model_that_sees_images_is_refused():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=TEXT, vision_config=vision | {"image_size": 8, "patch_size": 4}, mm_tokens_per_image=4
    )
    obstacle = find_obstacle(transformers.Gemma3ForConditionalGeneration(config))
    assert obstacle == "Gemma3ForConditionalGeneration is not a text-only decoder"


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    obstacle = find_obstacle(transformers.T5ForConditionalGeneration(config))
    assert obstacle == "T5ForConditionalGeneration is not a text-only decoder"


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_refused_and_low_rank_adapters_are_not(kind):
    model = build(SUPPORTED["llama"])
    assert find_obstacle(peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))) is None
    prompt_learning = peft.get_peft_model(build(SUPPORTED["llama"]), kind(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    assert "virtual tokens" in find_obstacle(prompt_learning)


@pytest.mark.parametrize("name", HIDDEN_RULE)
def test_attention_that_hides_its_rule_is_refused_when_it_is_called(name):
    tiny, reason = HIDDEN_RULE[name]
    model = build(tiny)
    SharedPrefix(model)
    with pytest.raises(UnsupportedAttentionError, match=reason), torch.no_grad():
        model(**pair_batch([(6, 3, 2)]), use_cache=False, fused_lm_head=True)
