"""Computes every prompt of a pair batch once, by hooks on the model that TRL's trainers call.

TRL calls the model on a padded batch `[chosen; rejected]` with `labels` and `fused_lm_head=True`. Three forward hooks
of torch modules turn this call into one over the packed row, and its result back into the padded form: before the
model (pack the batch), after the backbone (keep the predicting positions), after the model (spread the per-token
results). TRL's head, losses and metrics, PEFT, autocast, DDP and DeepSpeed are used unchanged, with one exception: the
head scores all positions that it gets, without a mask of labelled ones. A call without `pair_layout` is unaffected.
"""

from typing import TYPE_CHECKING, Any

import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from prefopt.models.modes import evaluating
from prefopt.models.shared_prefix.attention import NO_MASK, PREFIX, choose_form, register
from prefopt.models.shared_prefix.layout import PairLayout

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.utils import ModelOutput

LAYOUT = "pair_layout"
"""Key of a batch: its `PairLayout`."""
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
BASES = ("sdpa", "eager")
"""Attention implementations that can be replaced; for others, transformers checks their name, which would change."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""Results of TRL's head with one value per token, except `label_mask`: the batch's own mask gives the completions."""


def find_obstacle(model: "PreTrainedModel | PeftModel") -> str | None:
    """Returns why the prompts of this model cannot be shared; None if they can.

    Args:
        model: A causal language model, or a PeftModel around one.
    """
    causal = _causal(model)
    config = causal.config.get_text_config()
    name = type(causal).__name__
    if causal.config is not config or getattr(causal.config, "is_encoder_decoder", False):
        return f"{name} is not a text-only decoder"
    if getattr(causal, "_is_stateful", False):
        return f"{name} carries a state from token to token, which would flow from one completion into the other"
    foreign = set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS
    if foreign:
        return f"{name} has {', '.join(sorted(foreign))} layers, which do not attend token by token"
    if not getattr(causal, "_supports_attention_backend", False):
        return f"{name} does not compute attention through transformers' attention interface"
    attention = causal.config._attn_implementation
    if not attention.startswith(PREFIX) and attention not in BASES:
        return f"model.attn_implementation={attention} cannot be stood in for (allowed: {', '.join(BASES)})"
    if not all(getattr(module, "is_causal", True) for module in causal.modules()):
        return f"{name} has attention that is not causal"
    if any(getattr(module, "attention_dropout", 0) for module in causal.modules()):
        return f"{name} drops attention weights, and both completions would share what it drops from their prompt"
    if any(getattr(module, "sinks", None) is not None for module in causal.modules()):
        return f"{name} has attention sinks, which are keys that no token has"
    if not _backbone_is_module(causal):
        return f"{name} has no backbone apart from its head"
    if getattr(config, "output_router_logits", False) or _aux_loss_coefficient(config):
        return f"{name} has an auxiliary router loss, which would count a shared prompt once instead of twice"
    if hasattr(getattr(causal.base_model, "embeddings", None), "create_position_ids_from_input_ids"):
        return f"{name} counts positions from its padding token on"
    adapters = getattr(model, "peft_config", {}).values()
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters):
        return "the adapter prepends virtual tokens"
    return None


class SharedPrefix:
    """The shared-prefix forward of one model: its hooks and its attention.

    Attributes:
        form: Attention form, `split` or `varlen`.
        reason: Why this form was chosen.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        device: torch.device | None = None,
        compute_dtype: torch.dtype | None = None,
        form: str | None = None,
    ) -> None:
        """Installs the hooks and the attention.

        Args:
            model: A causal language model, or a PeftModel around one, for which `find_obstacle` returns None. It must
                have TRL's fused head when it is called.
            device: Device on which the model will compute; default: its present device.
            compute_dtype: Type in which attention computes; default: the type of the weights.
            form: `split` or `varlen`; default: the form that suits device and type.
        """
        causal = _causal(model)
        config = causal.config
        base = config._attn_implementation.removeprefix(PREFIX + "split_").removeprefix(PREFIX + "varlen_")
        self.form, self.reason = form or "", "the other form failed"
        if form is None:
            heads = _largest_heads(config)
            self.form, self.reason = choose_form(device or model.device, compute_dtype or causal.dtype, *heads)
        causal.set_attn_implementation(register(base, self.form))
        self._model = model
        self._handles = [
            model.register_forward_pre_hook(_pack, with_kwargs=True, prepend=True),
            causal.base_model.register_forward_hook(_keep_predictors, with_kwargs=True),
            model.register_forward_hook(_spread, with_kwargs=True),
            model.register_forward_hook(_end_packed_call, with_kwargs=True, always_call=True),
        ]
        self._base = base

    def __str__(self) -> str:
        return f"{self.form} attention ({self.reason})"

    def remove(self) -> None:
        """Removes the hooks and restores the model's own attention."""
        for handle in self._handles:
            handle.remove()
        _causal(self._model).set_attn_implementation(self._base)


def verify(model: torch.nn.Module, batch: dict[str, Any]) -> float:
    """Compares the shared forward with the plain one on a batch that has a layout.

    Args:
        model: The model with the hooks installed, wrapped (DDP, DeepSpeed) or not.
        batch: The model's input as TRL passes it, with `labels` and `pair_layout`.

    Returns:
        Mean absolute difference of the completion tokens' log-probs, divided by their mean absolute value.
    """
    plain = {key: value for key, value in batch.items() if key != LAYOUT}
    with torch.no_grad(), evaluating(model):
        expected, found = (
            model(**inputs, use_cache=False, fused_lm_head=True).log_probs.float() for inputs in (plain, batch)
        )
    return float((expected - found).abs().sum() / expected.abs().sum())


def _select_no_positions(device: torch.device) -> bool:
    """Stands in for `trl_utils._use_triton`, by which TRL's head decides whether to select the labelled positions.

    It is False, since all positions that reach the head are labelled; the selection would make the host wait for the
    GPU.
    """
    return False


def _end_packed_call(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
) -> None:
    if trl_utils._use_triton is _select_no_positions:  # set by this call, or by one that a signal ended
        trl_utils._use_triton = chunked_logprob._use_triton


def _pack(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
) -> tuple[tuple[object, ...], dict[str, Any]] | None:
    layout: PairLayout | None = kwargs.get(LAYOUT)
    if layout is None:
        return None
    input_ids = kwargs["input_ids"]
    assert input_ids.shape == (2 * layout.num_pairs, layout.width), "the layout belongs to another batch"
    trl_utils._use_triton = _select_no_positions
    taken = input_ids.reshape(1, -1).index_select(1, layout.source)
    return (
        args,
        {
            **kwargs,
            "input_ids": taken[:, : layout.num_tokens],
            "position_ids": layout.position_ids,
            "attention_mask": taken[:, :1].view(NO_MASK),  # its values are not read
            "labels": None,
            "shift_labels": taken[:, layout.num_tokens :],
        },
    )


def _keep_predictors(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Any], output: "ModelOutput"
) -> "ModelOutput":
    layout: PairLayout | None = kwargs.get(LAYOUT)
    if layout is not None:
        # The backward of `index_select` only adds up; that of advanced indexing first sorts the indices on a GPU.
        output.last_hidden_state = output.last_hidden_state.index_select(1, layout.predictors)
    return output


def _spread(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Any], output: "ModelOutput"
) -> "ModelOutput":
    layout: PairLayout | None = kwargs.get(LAYOUT)
    if layout is None:
        return output
    shape = (2 * layout.num_pairs, layout.width - 1)
    output.label_mask = None
    for name in PER_TOKEN:
        values = getattr(output, name)
        if values is not None:
            flat = values.new_zeros(shape[0] * shape[1])
            setattr(output, name, flat.index_copy_(0, layout.scored, values.reshape(-1)).view(shape))
    return output


def _causal(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _largest_heads(config: "PreTrainedConfig") -> tuple[int, tuple[int, int]]:
    """Returns (head size, (query heads, key heads)); if layers differ, of the layer with the largest heads."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    shapes = []
    for layer in layers:
        heads = layer.num_attention_heads
        head_size = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        shapes.append((head_size, (heads, getattr(layer, "num_key_value_heads", None) or heads)))
    return max(shapes)


def _backbone_is_module(causal: "PreTrainedModel") -> bool:
    return isinstance(causal.base_model, torch.nn.Module) and causal.base_model is not causal


def _aux_loss_coefficient(config: "PreTrainedConfig") -> float:
    """Returns the coefficient of the router loss, which TRL adds for every model that can return router logits."""
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if hasattr(config, "output_router_logits") else 0.0
