"""FlashAttention 3 and 4, if installed, as replacement of the flash kernels that torch contains."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefopt.models.shared_prefix.attention import split_attention, varlen_attention
from prefopt.models.shared_prefix.layout import PairLayout

MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""Module that torch imports when an implementation is activated (torch 2.13: `_fa3.py`, `_fa4.py`)."""
ORDER = {9: ("FA3", "FA4"), 10: ("FA4",)}
"""Implementations to try, by major compute capability: FA3 was written for 9, FA4 for 10; torch allows FA4 on 9."""
LIMIT = 0.05
"""Largest accepted difference in bf16, relative to the largest value, as in `choose_form`."""


def installed(device: torch.device) -> list[str]:
    """Returns the implementations to try on a device, the preferred one first; none before torch 2.13."""
    if device.type != "cuda" or not hasattr(attention, "activate_flash_attention_impl"):
        return []
    registered = attention.list_flash_attention_impls()
    major, _ = torch.cuda.get_device_capability(device)
    return [name for name in ORDER.get(major, ()) if name in registered and _can_be_found(MODULES[name])]


def activate(name: str | None) -> None:
    """Activates an implementation of flash kernels for this process; None restores torch's own.

    From then on `varlen_attn` and scaled-dot-product attention of all models in the process use it.

    Raises:
        ImportError, RuntimeError, ValueError, AttributeError, OSError: The package is not as torch expects it.
    """
    if not hasattr(attention, "current_flash_attention_impl"):
        return
    active = attention.current_flash_attention_impl()
    if active == name:
        return
    if name is None:
        attention.restore_flash_attention_impl()
    else:
        attention.activate_flash_attention_impl(name)


def differs_with_window(device: torch.device) -> str | None:
    """Returns by how much attention with a sliding window differs from the split form; None if they agree.

    It compares values and gradients. Other trials do not cover windows: that of `choose_form` has none, and that of a
    model has sequences shorter than most windows.
    """
    layout = PairLayout.build([(19, 7, 12), (0, 6, 3), (5, 1, 29)], width=40).to(device)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, heads, layout.num_tokens, 64) for heads in (8, 2, 2)]
    tensors = [torch.randn(s, device=device, dtype=torch.bfloat16, generator=generator) for s in shapes]
    query, key, value = (tensor.requires_grad_() for tensor in tensors)
    results = []
    for form in (varlen_attention, split_attention):
        out = form(query, key, value, layout, window=8)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))])
    largest = max((a - b).abs().max().item() / b.abs().max().item() for a, b in zip(*results, strict=True))
    return None if largest < LIMIT else f"its sliding windows are off by {largest:.2g} on random tensors"


@contextmanager
def independent() -> Iterator[None]:
    """Keeps scaled-dot-product attention from using flash kernels, so that they are not compared with themselves."""
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def _can_be_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # its parent package is not installed
        return False
