"""Random models of a few layers, one per architecture, and ragged batches of pairs as TRL passes them to a model."""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from trl.trainer.utils import add_fused_lm_head

from prefopt.models.shared_prefix import LAYOUT, PairLayout

VOCABULARY = 200
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 7}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RAGGED = [(12, 5, 9), (1, 14, 1), (0, 6, 3), (20, 3, 4)]
"""Lengths of prompt, chosen and rejected: longer and shorter than the sliding window, down to 0 and 1."""


@dataclass
class Tiny:
    """An architecture: its class without `ForCausalLM`, and what differs from `SIZES`.

    Gemma 4 computes in float64, since rounding alone moves its tiny random gradients by 2e-5 in float32.
    """

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    attention: str | None = None
    dtype: torch.dtype = torch.float32


SUPPORTED = {
    "llama": Tiny("Llama"),
    "llama_tied": Tiny("Llama", {"tie_word_embeddings": True}),
    "llama_eager": Tiny("Llama", attention="eager"),
    "mistral": Tiny("Mistral", WINDOW),
    "qwen2": Tiny("Qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": Tiny("Qwen3", {"head_dim": 8}),
    "gemma2": Tiny(
        "Gemma2",
        WINDOW
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 4,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 3.0,
        },
        attention="eager",
    ),
    "gemma3": Tiny(
        "Gemma3",
        WINDOW
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma4": Tiny(
        "Gemma4",
        WINDOW
        | {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        dtype=torch.float64,
    ),
    "phi3": Tiny("Phi3", WINDOW),
    "smollm3": Tiny("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "olmo3": Tiny("Olmo3", WINDOW),
    "cohere2": Tiny("Cohere2", WINDOW | {"sliding_window_pattern": 2}),
    "mixtral_without_router_loss": Tiny("Mixtral", EXPERTS | {"router_aux_loss_coef": 0.0}),
    "deepseek_v3": Tiny(
        "DeepseekV3",
        EXPERTS
        | {
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
        },
    ),
    "gpt2": Tiny("GPT2", GPT2),
    "opt": Tiny("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
}
FUSED = ("log_probs", "entropy", "mean_logits", "is_top1")


def build(tiny: Tiny, outputs: tuple[str, ...] = FUSED) -> Any:
    """A model without dropout whose weights are large enough for every token to matter, with TRL's head on it."""
    head = "GPT2LMHeadModel" if tiny.family == "GPT2" else f"{tiny.family}ForCausalLM"
    model_class = getattr(transformers, head)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SIZES | tiny.changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if tiny.attention is not None:
        model.set_attn_implementation(tiny.attention)
    add_fused_lm_head(model, outputs=outputs)
    return model.to(tiny.dtype).train()


def pair_batch(lengths: list[tuple[int, int, int]], seed: int = 0, share_from: int = 0) -> dict[str, Any]:
    """A padded batch `[chosen; rejected]` of random tokens, and its layout."""
    generator = torch.Generator().manual_seed(seed)
    pairs, width = len(lengths), max(prompt + max(completions) for prompt, *completions in lengths)
    input_ids = torch.zeros(2 * pairs, width, dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for pair, (prompt, *completions) in enumerate(lengths):
        shared = torch.randint(3, VOCABULARY, (prompt,), generator=generator)
        for row, length in zip((pair, pair + pairs), completions, strict=True):
            own = torch.randint(3, VOCABULARY, (length,), generator=generator)
            input_ids[row, : prompt + length] = torch.cat([shared, own])
            attention_mask[row, : prompt + length] = 1
            labels[row, prompt : prompt + length] = own
    layout = PairLayout.build(lengths, width, share_from)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, LAYOUT: layout}


def without_layout(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != LAYOUT}
