"""What a step costs besides time: floating-point operations and memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Dense bf16 operations per second of the SXM modules, from NVIDIA's data sheets."""
Work = Callable[[], Any]


def count_flops(work: Work) -> int:
    """Floating-point operations of matrix products and attention, by torch's counter.

    The counter knows no formula for the attention kernel of the CPU, so it gets the one of the other kernels. These
    formulas count every query with every key, masked or not.
    """
    kernels = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
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


def count_useful_flops(model: Any, lengths: Iterable[tuple[int, int, int]]) -> float:
    """Operations of a step's forward and backward that no implementation can leave out: the numerator of the MFU.

    Every prompt once, causal attention, scored positions alone in the head; no padding, no recomputation, no
    reference. 2 per parameter of a linear layer and token, 4 x heads x head size per layer, query and key; the
    backward costs twice the forward.

    Args:
        model: A causal language model of transformers.
        lengths: Tokens of prompt, chosen and rejected of each pair.
    """
    config = model.config
    linear = sum(module.weight.numel() for module in model.base_model.modules() if isinstance(module, torch.nn.Linear))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_key = 4 * config.num_hidden_layers * config.num_attention_heads * head_size
    head = 2 * config.hidden_size * config.vocab_size
    forward = 0.0
    for prompt, chosen, rejected in lengths:
        keys = prompt**2 / 2 + sum(prompt * answer + answer**2 / 2 for answer in (chosen, rejected))
        forward += 2 * linear * (prompt + chosen + rejected) + per_key * keys + head * (chosen + rejected)
    return 3 * forward


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _count_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))
