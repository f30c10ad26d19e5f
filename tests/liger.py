"""Liger's layers on a CPU: the installed package through Triton's interpreter, or a stand-in with the same seam.

    pip install --no-deps liger-kernel triton && TRITON_INTERPRET=1 pytest tests/numerics/test_fused_layers.py

The stand-in has the two names of `liger_kernel.transformers.monkey_patch` that prefopt uses, and does to a Llama what
liger-kernel 0.8.5 does (read in its `monkey_patch.py`): binds other forwards to norms and MLPs, sets attributes that
the kernels read, and replaces two classes and the rotary function in transformers' file.
"""

import os
import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

VERSION = "0.8.5"
PATCHES = "liger_kernel.transformers.monkey_patch"


class FusedRMSNorm(torch.nn.Module):
    """Class that takes the place of `LlamaRMSNorm`; its forward is bound to instances as well."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.float().square().mean(-1, keepdim=True)
        normed = hidden.float() * torch.rsqrt(variance + self.variance_epsilon)
        return (self.offset + self.weight) * normed.to(hidden.dtype)


class FusedMLP(torch.nn.Module):
    """As `FusedRMSNorm`, of `LlamaMLP`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


def fused_rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[Any, Any]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = q.shape[-1] // 2

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., :half], x[..., half:]
        top = first * cos[..., :half] - second * sin[..., :half]
        return torch.cat([top, second * cos[..., half:] + first * sin[..., half:]], dim=-1)

    return rotate(q), rotate(k)


def apply_to_llama(model: Any, *, fused_linear_cross_entropy: bool = True, cross_entropy: bool = False) -> None:
    modeling_llama.apply_rotary_pos_emb = fused_rotary
    modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP = FusedRMSNorm, FusedMLP
    if fused_linear_cross_entropy:
        model.forward = MethodType(lambda self, **inputs: None, model)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.offset, module.casting_mode, module.in_place = 0.0, "llama", True
            _bind(module, "forward", FusedRMSNorm.forward)
            _bind(module, "_get_name", lambda self: "FusedRMSNorm")
        elif hasattr(module, "gate_proj"):
            _bind(module, "forward", FusedMLP.forward)


def _bind(module: Any, name: str, function: Callable[..., Any]) -> None:
    module.__dict__[name] = function.__get__(module, type(module))


def install_stub(monkeypatch: pytest.MonkeyPatch, apply: Callable[..., None] = apply_to_llama) -> None:
    """Makes the stand-in importable; `apply` does what Liger would do to a Llama."""

    def apply_to_instance(model: Any, **wanted: Any) -> None:
        apply(model, **{k: v for k, v in wanted.items() if k in ("fused_linear_cross_entropy", "cross_entropy")})

    for name in ("liger_kernel", "liger_kernel.transformers", PATCHES):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    patches: Any = sys.modules[PATCHES]
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    patches._apply_liger_kernel_to_instance = apply_to_instance
    monkeypatch.setattr("prefopt.models.kernels.version", lambda name: VERSION)


def install_real() -> None:
    """The installed Liger, with what Triton's interpreter (3.9) lacks on a CPU: scalars as tensors, and libdevice."""
    needs = "needs liger-kernel, triton and TRITON_INTERPRET=1"
    if os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported, which importing torch may do
        pytest.skip(needs)
    pytest.importorskip("triton", reason=needs)
    pytest.importorskip("liger_kernel", reason=needs)
    import liger_kernel.transformers  # noqa: F401 (its operators are imported with it)
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    if getattr(interpreter, "takes_floats", False):
        return
    interpreter.takes_floats = True
    convert, semantic = interpreter._implicit_cvt, {"_semantic": interpreter.interpreter_semantic}

    def convert_all(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = convert_all
    for name in [name for name in sys.modules if name.startswith("liger_kernel.ops")]:
        operators = sys.modules[name]
        if hasattr(operators, "rsqrt"):
            operators.rsqrt = lambda x: tl.math.rsqrt(x, **semantic)
        if hasattr(operators, "tanh"):
            operators.tanh = lambda x: 2 / (1 + tl.math.exp(-2 * x, **semantic)) - 1
