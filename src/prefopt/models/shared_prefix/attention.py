"""Attention of a shared-prefix row: a token attends to its own segment up to itself, and to the prompt of its pair.

There are two forms, both registered with transformers' attention interface:

- split: three calls of scaled-dot-product attention per pair. It runs on any device, with any head size and softcap.
- varlen: one call of a variable-length kernel, whose causal mask is aligned to the last query and the last key. It
  needs CUDA and half precision.

Neither form builds a mask over the whole row.
"""

import sys
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefopt.models.shared_prefix.layout import PairLayout, VarlenIndices

Kernel = Callable[..., torch.Tensor]
PREFIX = "prefopt_"
INDEX_DRIVEN = ("s_aux", "position_bias", "alibi")
"""Arguments of attention that are refused: they add keys, or depend on a token's index, which is not its position."""
HAS_KERNEL = {"cuda"}
"""Types of devices with a variable-length kernel."""
NO_MASK = (1, 1, 1, 1)
"""Shape of the dummy mask of a packed call: given a 4-dimensional mask, transformers builds none itself."""


class UnsupportedAttentionError(ValueError):
    """An attention layer needs a feature that the shared-prefix forms do not have."""


def register(base: str, form: str) -> str:
    """Registers a shared-prefix attention with transformers; in a call without a layout it computes as `base`.

    Args:
        base: The implementation that it replaces: sdpa, eager, ...
        form: `split` or `varlen`.

    Returns:
        The name for `model.set_attn_implementation`.
    """
    name = f"{PREFIX}{form}_{base}"
    compute = {"split": split_attention, "varlen": varlen_attention}[form]

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layout = kwargs.pop("pair_layout", None)
        if layout is None:
            _refuse_lost_layout(module, key, attention_mask)
            plain = ALL_ATTENTION_FUNCTIONS.get_interface(base, _eager_of(module))
            result: tuple[torch.Tensor, torch.Tensor | None] = plain(
                module, query, key, value, attention_mask, **kwargs
            )
            return result
        _refuse_unknown(module, attention_mask, kwargs)
        scaling, dropout = kwargs.get("scaling"), kwargs.get("dropout") or 0.0
        window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
        out = compute(query, key, value, layout, scaling=scaling, dropout=dropout, window=window, softcap=softcap)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def split_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PairLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Computes attention in three calls per pair: prompt on prompt, and each completion on `[prompt; completion]`.

    Args:
        query: Shape (1, heads, T, head size).
        key: Shape (1, key heads, T, head size); heads is a multiple of key heads.
        value: Shape as key.
        layout: Positions of the segments in the row.
        scaling: Factor of the scores; default 1 / sqrt(head size).
        dropout: Share of attention weights that are dropped.
        window: Number of last positions that a token attends to, itself included; None: all.
        softcap: Scores become softcap * tanh(score / softcap) (Gemma 2); None: unchanged.

    Returns:
        Shape (1, heads, T, head size).
    """
    groups = query.shape[1] // key.shape[1]
    queries, keys, values = (
        torch.split(tensor, layout.split, dim=2)
        for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shape = (q.shape[2], k.shape[2], window)
        if shape not in layout.masks:
            layout.masks[shape] = _bottom_right(*shape, q.device)
        mask = layout.masks[shape]
        if softcap is not None:
            return _softcapped(q, k, v, mask, scaling, dropout, softcap)
        is_causal = mask is None and q.shape[2] > 1
        return scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scaling)

    outputs = []
    for pair, (prompt, *_) in enumerate(layout.segments):
        shared = 3 * pair
        if prompt:
            outputs.append(attend(queries[shared], keys[shared], values[shared]))
        for lane in (shared + 1, shared + 2):
            k, v = (torch.cat([both[shared], both[lane]], dim=2) for both in (keys, values))
            outputs.append(attend(queries[lane], k, v))
    return torch.cat(outputs, dim=2)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PairLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Computes attention in one kernel call for the whole row. Shapes and other arguments as in `split_attention`.

    It falls back to `split_attention` with softcap, with dropout, or if values have another head size than queries.

    Args:
        kernel: A function of (query, key, value, indices, scaling, window), with tensors of shape (tokens, heads,
            head size); default: torch's kernel.
    """
    if softcap is not None or dropout or query.shape[-1] != value.shape[-1]:
        return split_attention(
            query, key, value, layout, scaling=scaling, dropout=dropout, window=window, softcap=softcap
        )
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave query and key in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    indices = layout.varlen
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if indices.keys is not None:
        k, v = torch.cat([k, v], dim=1).index_select(0, indices.keys).chunk(2, dim=1)
    out = (kernel or _torch_varlen)(q, k, v, indices, scaling, window)
    return out.transpose(0, 1).unsqueeze(0)


def choose_form(device: torch.device, dtype: torch.dtype, head_size: int, heads: tuple[int, int]) -> tuple[str, str]:
    """Returns the attention form for this hardware, and the reason for it.

    `varlen` is chosen only if its values and gradients agree with `split` on random tensors.

    Args:
        device: Device on which the model computes.
        dtype: Type in which attention computes (under autocast, autocast's type).
        head_size: Head size of query, key and value.
        heads: Numbers of query heads and of key heads.
    """
    if device.type not in HAS_KERNEL:
        return "split", f"{device.type} has no variable-length kernel"
    if dtype not in (torch.bfloat16, torch.float16):
        return "split", f"the variable-length kernel does not compute in {dtype}"
    layout = PairLayout.build([(19, 7, 12), (0, 6, 3), (5, 1, 9)], width=40).to(device)
    shapes = [(1, count, layout.num_tokens, head_size) for count in (heads[0], heads[1], heads[1])]
    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.randn(s, device=device, dtype=dtype, generator=generator).requires_grad_() for s in shapes]
    try:
        results = []
        query, key, value = tensors
        for form in (varlen_attention, split_attention):
            out = form(query, key, value, layout)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
    except (ImportError, RuntimeError, NotImplementedError, TypeError) as error:
        return "split", f"the variable-length kernel refuses these shapes ({str(error).splitlines()[0]})"
    largest = max((a - b).abs().max().item() / b.abs().max().item() for a, b in zip(*results, strict=True))
    if not largest < 0.05:
        return "split", f"the variable-length kernel is off by {largest:.2g} on random tensors"
    return "varlen", f"agrees with the split form within {largest:.1g}"


def _torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: VarlenIndices,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Calls torch's kernel with the keywords of the installed version (torch 2.11 to 2.13 differ in them)."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = (indices.cu_seqlens_q, indices.cu_seqlens_k, indices.max_q, indices.max_k)
    span = (-1 if window is None else window - 1, 0)
    how: dict[str, Any] = {"scale": scaling, "window_size": span}
    if query.shape[1] != key.shape[1] and _must_be_told(varlen_attn):
        how["enable_gqa"] = True
    out = varlen_attn(query, key, value, *lengths, **how)
    assert isinstance(out, torch.Tensor), "only the output was asked for"
    return out


@cache
def _must_be_told(kernel: Kernel) -> bool:
    """Returns whether a kernel has the argument `enable_gqa`, which it needs if query heads share key heads."""
    return "enable_gqa" in signature(kernel).parameters


def _bottom_right(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Returns the mask, shape (queries, keys), of the last `queries` of `keys` positions.

    It is None if all keys may be attended to, or if the mask is plainly causal.
    """
    fits = window is None or keys <= window
    if fits and (queries == keys or queries == 1):
        return None
    offset = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(offset)
    return mask if fits or window is None else mask.triu(offset - window + 1)


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float,
) -> torch.Tensor:
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


def _refuse_unknown(module: torch.nn.Module, mask: torch.Tensor | None, kwargs: dict[str, object]) -> None:
    found = [name for name in INDEX_DRIVEN if kwargs.get(name) is not None]
    if not getattr(module, "is_causal", True):
        found.append("attention that is not causal")
    if mask is not None and mask.shape != NO_MASK:
        found.append("a mask of its own")
    if "sliding_window" not in kwargs and getattr(getattr(module, "config", None), "sliding_window", None):
        found.append("a sliding window that it does not tell of")
    if found:
        raise UnsupportedAttentionError(f"{type(module).__name__} uses {', '.join(found)}")


def _refuse_lost_layout(module: torch.nn.Module, key: torch.Tensor, mask: torch.Tensor | None) -> None:
    if mask is not None and mask.shape == NO_MASK and key.shape[2] > 1:
        raise UnsupportedAttentionError(f"{type(module).__name__} is not handed what its model is called with")


def _eager_of(module: torch.nn.Module) -> Callable[..., object] | None:
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
