"""What a step costs besides time: floating-point operations, memory, and what it asks of the host."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.attention.varlen  # defines the operators of the variable-length kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Dense bf16 operations per second of the SXM modules, from NVIDIA's data sheets."""
Work = Callable[[], Any]


def count_flops(work: Work) -> int:
    """Floating-point operations of matrix products and attention, by torch's counter.

    All formulas of attention count every query of a sequence with every key of it, masked or not.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        work()
    return int(counter.get_total_flops())


def measure_peak(work: Work, device: torch.device) -> int:
    """Bytes allocated at the peak of `work`, above what was allocated before it.

    On CUDA from the allocator's counters. On the CPU the sum over the profiler's records of every allocation and
    release, which is the same quantity: resident memory would also hold what the C library keeps for later.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        work()
    records = profiler.profiler.kineto_results.events()
    changes = sorted((record.start_ns(), record.nbytes()) for record in records if record.name() == "[memory]")
    level = peak = 0
    for _, change in changes:
        level += change
        peak = max(peak, level)
    return peak


@dataclass(frozen=True, slots=True)
class HostCalls:
    """What a piece of work asks of CUDA.

    Attributes:
        launches: Kernels that the host launches.
        copies: Asynchronous copies and fills.
        synchronizations: Times that the host waits for the device.
    """

    launches: int
    copies: int
    synchronizations: int

    @classmethod
    def of(cls, calls: Mapping[str, int]) -> "HostCalls":
        """Sums up the profiler's counts of CUDA's calls by name; other names count nothing."""

        def total(*beginnings: str) -> int:
            return sum(count for name, count in calls.items() if name.startswith(beginnings))

        return cls(
            launches=total("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel"),
            copies=total("cudaMemcpyAsync", "cudaMemsetAsync"),
            synchronizations=total("cudaStreamSynchronize", "cudaEventSynchronize"),
        )


def count_host_calls(work: Work, device: torch.device) -> HostCalls | None:
    """Counts with the profiler what `work` asks of CUDA; None on another device."""
    if device.type != "cuda":
        return None
    work()  # what is only done once, such as compiling a kernel, is not counted
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=False) as profiler:
        work()
    return HostCalls.of(Counter(record.name() for record in profiler.profiler.kineto_results.events()))


def count_useful_flops(model: Any, lengths: Iterable[tuple[int, int, int]]) -> float:
    """Operations of a step's forward and backward that no implementation can leave out: the numerator of the MFU.

    Every prompt once, causal attention, scored positions alone in the head; no padding, no recomputation, no
    reference. 2 per parameter of a linear layer and token, 4 x heads x head size per layer, query and key; the
    backward costs twice the forward, and only once the forward where a weight is frozen, which has no gradient.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        lengths: Tokens of prompt, chosen and rejected of each pair.
    """
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    config = causal.config
    linear = sum(
        module.weight.numel() * (3 if module.weight.requires_grad else 2)
        for module in causal.base_model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_key = 3 * 4 * config.num_hidden_layers * config.num_attention_heads * head_size
    head = (3 if causal.get_output_embeddings().weight.requires_grad else 2) * config.hidden_size * config.vocab_size
    total = 0.0
    for prompt, chosen, rejected in lengths:
        keys = prompt**2 / 2 + sum(prompt * answer + answer**2 / 2 for answer in (chosen, rejected))
        total += 2 * linear * (prompt + chosen + rejected) + per_key * keys + 2 * head * (chosen + rejected)
    return total


def _count_addmm(_: Any, left: Any, right: Any, *__: Any, **___: Any) -> int:
    return _count_mm(left, right)


def _count_mm(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of shapes (..., m, k) and (..., k, n)."""
    return 2 * math.prod(left) * int(right[-1])


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _count_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def _count_varlen(query: Any, _: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, *__: Any, **___: Any) -> int:
    """Of tensors (tokens, heads, head size) and the sequences' beginnings: scores, and their sum of values."""
    pairs = int((cu_seq_q.diff() * cu_seq_k.diff()).sum())
    return 2 * query.shape[1] * (query.shape[2] + value.shape[2]) * pairs


def _count_varlen_backward(
    _: Any,
    query: Any,
    __: Any,
    value: Any,
    ___: Any,
    ____: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    *rest: Any,
    **named: Any,
) -> int:
    """Scores once more, and the gradients of scores, values, queries and keys."""
    pairs = int((cu_seq_q.diff() * cu_seq_k.diff()).sum())
    return 2 * query.shape[1] * (3 * query.shape[2] + 2 * value.shape[2]) * pairs


for _formula in (_count_varlen, _count_varlen_backward):
    _formula._get_raw = True  # type: ignore[attr-defined]  # torch hands them tensors, not shapes

FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
    torch.ops.torch_attn._varlen_attn: _count_varlen,
    torch.ops.torch_attn._varlen_attn_backward: _count_varlen_backward,
    torch.ops.aten.addmm: _count_addmm,
    torch.ops.aten.baddbmm: _count_addmm,
    torch.ops.aten.mm: _count_mm,
    torch.ops.aten.bmm: _count_mm,
}
"""What torch's counter lacks, or gets wrong.

It has no formula for the attention of the CPU. Its formulas for addmm, bmm and baddbmm take the type of the result in
`addmm(..., out_dtype=...)`, as TRL's head calls it on CUDA, for a shape, and fail (torch 2.11 and 2.13). The
variable-length kernel is counted here so that every version of torch counts it alike.
"""
