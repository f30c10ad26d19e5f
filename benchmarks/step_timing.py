"""Time, operations and memory of the variants of a DPO step, once they are known to compute the same."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import gate
from benchmarks.cost import PEAK_FLOPS, HostCalls, count_flops, count_host_calls, count_useful_flops, measure_peak
from benchmarks.shapes import COLUMNS, Batches
from benchmarks.variants import BASELINE, FUSED, OURS, PRECOMPUTE, Contest, Variant


@dataclass(frozen=True, slots=True)
class Timing:
    """What one variant needs for one round, that is a step on every batch.

    Attributes:
        host_s: Seconds until the last step is handed to the device, without waiting for it; median over rounds. What
            is near `median_s` is bound by the host. None on a CPU, which computes while it is called.
        cpu_s: Processor time of the process, all threads, median over rounds.
        times_min: How many times as long as prefopt it takes, with fused layers in both or in neither, by minima.
        times_median: The same by medians.
        loss_error: Relative difference from the loss that is expected (see `Comparison.compared_with`), largest.
        gradient_error: Norm of the difference from the gradient that is expected over that one's norm, largest.
        tokens_computed: Tokens that pass through the policy.
        pairs_per_s: By the minimum.
        tokens_per_s: Real tokens (`Comparison.tokens_real`, the same for every variant), by the minimum.
        flops: Operations by torch's counter, reference forward included.
        times_flops: How many times prefopt's it is.
        peak_bytes: Memory at the peak of forward and backward on the widest batch, above the level before it:
            activations and what is temporary. Weights, gradients and optimizer are there before.
        total_bytes: The same with policy, gradients, optimizer and, if it has to be in memory, the reference.
        reference_bytes: Weights of the reference, if it has to be in memory.
        collate_s: Collating the batches, minimum over rounds; in no other time.
        host_calls: What a step on the first batch asks of CUDA: launches, copies, waits; None on a CPU.
        mfu: Share of the device's peak that useful operations reach, by the minimum; the same useful operations for
            every variant. None where the peak is not known.
    """

    variant: str
    min_s: float
    median_s: float
    host_s: float | None
    cpu_s: float
    times_min: float
    times_median: float
    loss_error: float
    gradient_error: float
    tokens_computed: int
    pairs_per_s: float
    tokens_per_s: float
    flops: int
    times_flops: float
    peak_bytes: int
    times_peak_bytes: float
    total_bytes: int
    reference_bytes: int
    collate_s: float
    host_calls: HostCalls | None
    mfu: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants on the batches of one shape.

    Attributes:
        trained: `none`: all weights; else the kind of adapter.
        tokens_real: Tokens of prompt + chosen and prompt + rejected, without padding.
        tokens_padded: The same with padding, which is what TRL computes.
        tokens_shared: Tokens with every prompt once and no padding.
        padding_share: 1 - tokens_real / tokens_padded.
        compared_with: What a step is expected to equal: TRL's step, or in half precision TRL's step in float32.
        loss_limit: Relative error of the loss above which nothing would be timed.
        gradient_limit: The same for the gradient.
        store_fill_s: Computing the reference log-probs of these pairs for our store, once.
        break_even_epochs: After so many epochs with a live reference, filling the store has paid off against it.
    """

    model: str
    trained: str
    pairs: str
    batch_pairs: int
    batches: int
    tokens_real: int
    tokens_padded: int
    tokens_shared: int
    padding_share: float
    loss: float
    compared_with: str
    loss_limit: float
    gradient_limit: float
    store_fill_s: float
    break_even_epochs: float
    variants: list[Timing]


def compare(contest: Contest, model: str, trained: str, pairs: str, batches: Batches, rounds: int) -> Comparison:
    """Checks that all variants compute the same, then measures them.

    Raises:
        DisagreementError: They do not; nothing is measured.
    """
    rows, usage = contest.add_reference(batches)
    collated = {name: [contest.collate(name, batch) for batch in rows[name]] for name in contest.variants}
    agreement = gate.check(contest, batches, collated)
    costs = {name: measure_cost(contest, variant, collated[name]) for name, variant in contest.variants.items()}
    clocks = measure_time(contest, rows, collated, rounds)
    lengths = [tuple(len(row[name]) for name in COLUMNS) for batch in batches for row in batch]
    tokens_padded = sum(batch["input_ids"].numel() for batch in collated[BASELINE])
    tokens_shared = sum(map(sum, lengths))
    tokens_real = tokens_shared + sum(prompt for prompt, *_ in lengths)
    timings = []
    for name, clock in clocks.items():
        variant, cost, least = contest.variants[name], costs[name], min(clock.wall)
        ours = OURS + FUSED if variant.has_fused_layers else OURS
        reference_bytes = contest.reference_bytes if variant.is_live else 0
        timings.append(
            Timing(
                variant=name,
                min_s=least,
                median_s=statistics.median(clock.wall),
                host_s=statistics.median(clock.host) if contest.device.type == "cuda" else None,
                cpu_s=statistics.median(clock.cpu),
                times_min=least / min(clocks[ours].wall),
                times_median=statistics.median(clock.wall) / statistics.median(clocks[ours].wall),
                loss_error=agreement.loss[name],
                gradient_error=agreement.gradient[name],
                tokens_computed=tokens_shared if variant.has_engine else tokens_padded,
                pairs_per_s=len(lengths) / least,
                tokens_per_s=tokens_real / least,
                flops=cost.flops,
                times_flops=cost.flops / costs[ours].flops,
                peak_bytes=cost.peak_bytes,
                times_peak_bytes=cost.peak_bytes / costs[ours].peak_bytes,
                total_bytes=contest.held_bytes + reference_bytes + cost.peak_bytes,
                reference_bytes=reference_bytes,
                collate_s=min(clock.collate),
                host_calls=cost.host_calls,
                mfu=_mfu(contest, lengths, least),
            )
        )
    live_s = min(clocks[BASELINE].wall) - min(clocks[PRECOMPUTE].wall)
    return Comparison(
        model=model,
        trained=trained,
        pairs=pairs,
        batch_pairs=len(batches[0]),
        batches=len(batches),
        tokens_real=tokens_real,
        tokens_padded=tokens_padded,
        tokens_shared=tokens_shared,
        padding_share=1 - tokens_real / tokens_padded,
        loss=agreement.mean_loss,
        compared_with=agreement.compared_with,
        loss_limit=agreement.loss_limit,
        gradient_limit=agreement.gradient_limit,
        store_fill_s=usage.computed_s,
        break_even_epochs=usage.computed_s / live_s,
        variants=timings,
    )


class Clocks:
    """Seconds of a variant, one value a round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.host: list[float] = []
        self.cpu: list[float] = []
        self.collate: list[float] = []


def measure_time(
    contest: Contest, rows: dict[str, Batches], collated: dict[str, list[dict[str, Any]]], rounds: int
) -> dict[str, Clocks]:
    """Runs `rounds` rounds, in each of them every variant once on all batches, after one that does not count.

    The device is waited for before the first step and after the last one of a variant, never in between.
    """
    clocks = {name: Clocks() for name in contest.variants}
    for counted in [False] + [True] * rounds:
        for name, variant in contest.variants.items():
            begun = time.perf_counter()
            for batch in rows[name]:
                contest.collate(name, batch)
            collate_s = time.perf_counter() - begun
            with variant.active():
                _synchronize(contest.device)
                wall, cpu = time.perf_counter(), time.process_time()
                for batch in collated[name]:
                    contest.optimizer.zero_grad()
                    variant.differentiate(batch)
                    contest.optimizer.step()
                host = time.perf_counter() - wall
                _synchronize(contest.device)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if counted:
                clocks[name].wall.append(wall)
                clocks[name].host.append(host)
                clocks[name].cpu.append(cpu)
                clocks[name].collate.append(collate_s)
    return clocks


@dataclass(frozen=True, slots=True)
class Cost:
    """What a variant needs besides time; see `Timing`."""

    flops: int
    peak_bytes: int
    host_calls: HostCalls | None


def measure_cost(contest: Contest, variant: Variant, batches: list[dict[str, Any]]) -> Cost:
    """Counts the operations of all batches, the memory of the widest, and the host's calls for the first."""

    def work(batch: dict[str, Any]) -> Callable[[], Any]:
        return lambda: variant.differentiate(batch)

    def step() -> None:
        contest.optimizer.zero_grad()
        variant.differentiate(batches[0])
        contest.optimizer.step()

    with variant.active():
        variant.differentiate(batches[0])  # leaves gradients behind, so that the peak does not hold them
        flops = sum(count_flops(work(batch)) for batch in batches)
        peak = measure_peak(work(max(batches, key=lambda batch: batch["input_ids"].numel())), contest.device)
        return Cost(flops, peak, count_host_calls(step, contest.device))


def _mfu(contest: Contest, lengths: list[Any], seconds: float) -> float | None:
    if contest.device.type != "cuda" or contest.dtype is torch.float32:
        return None
    peak = PEAK_FLOPS.get(torch.cuda.get_device_name(contest.device))
    return None if peak is None else count_useful_flops(contest.policy, lengths) / seconds / peak


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
