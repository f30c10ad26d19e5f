"""Finds by trial how many tokens fit on the device in one forward; the result is stored with the run."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.config.choices import AUTO, PeftMethod
from prefopt.config.schema import TrainConfig
from prefopt.data.batching import fill, pair_tokens
from prefopt.data.ragged import PairTable
from prefopt.distributed.group import agree
from prefopt.models.shared_prefix.layout import to_segments
from prefopt.process.errors import UserError
from prefopt.process.ranks import world_size

if TYPE_CHECKING:
    from transformers import Trainer

    from prefopt.training.durable import DurableTrainer

logger = logging.getLogger(__name__)

HEADROOM = 0.1
"""Share of the device's memory that trials must leave free, since a long run fragments memory in another way."""
RESOLUTION = 16
"""A found budget is at most the fraction 1 / RESOLUTION below the largest one that fits."""
MIN_STEPS = 20
"""Least optimizer steps per epoch that a found budget leaves, since a larger step changes what is learnt."""
OTHERWISE = {"tokens_per_device": "null", "gradient_checkpointing": "true"}
"""For each setting, the value to use instead of `auto` where no trial is possible."""
CPU_TOKENS = 4096
"""Token budget on a CPU: larger batches are not faster there, and out of memory kills the process without an error."""

Trial = Callable[[list[int], bool], bool]
"""Takes rows and whether to checkpoint; returns whether their forward and backward fits on the device."""


@dataclass(frozen=True)
class Fit:
    """What a run computes in one forward. The first attempt finds it; later ones reuse it, so batches stay the same.

    Attributes:
        tokens: Budget of computed tokens per device and forward; None if forwards have a fixed number of examples.
        checkpointing: Whether activations are recomputed in the backward pass.
    """

    tokens: int | None
    checkpointing: bool

    @classmethod
    def of(cls, trainer: "DurableTrainer", config: TrainConfig, kept: "Fit | None" = None) -> "Fit":
        """Returns the settings; where they are `auto`, the stored values or else newly found ones. All ranks call it.

        Args:
            trainer: Its model is on the device, and its `engine` is chosen.
            config: `trainer.tokens_per_device` and `trainer.gradient_checkpointing` are read.
            kept: What the first attempt of this run found; None in the first attempt.

        Raises:
            UserError: The longest example does not fit.
        """
        settings = config.trainer
        if not is_tried(config):
            return cls(settings.tokens_per_device, settings.gradient_checkpointing)
        if kept is not None:
            fit = kept
            logger.info("fit: %s, as this run began", fit)
        else:
            work = Workload.of(trainer)
            if trainer.args.device.type == "cuda":
                with DeviceTrial(trainer) as trial:
                    fit = find_fit(work, trial, config)
                    found = f"tried {trial.num_tries} times on the longest examples, {trial.describe_memory()}"
            else:
                fit = fit_on_cpu(work, config)
                found = f"a rule: {trainer.args.device.type} cannot be tried"
            logger.info("fit: %s (%s)", fit, found)
        if fit.checkpointing:
            recompute_activations(trainer)
        return fit

    def __str__(self) -> str:
        budget = "" if self.tokens is None else f"up to {self.tokens:,} tokens per forward, "
        return f"{budget}{'with' if self.checkpointing else 'without'} gradient checkpointing"


def without_trial(config: TrainConfig, *, is_held_out: bool) -> TrainConfig:
    """Returns the settings for a pass over the data that trains nothing, and so needs no trial.

    Args:
        config: Settings of the runs for which the pass is made.
        is_held_out: Whether there are held-out examples; the pass covers them too, as every report measures them.
    """
    trainer = config.trainer
    every = trainer.eval_every or (1 if is_held_out else None)
    checkpointing = trainer.gradient_checkpointing is True
    passing = replace(
        trainer,
        tokens_per_device=None,
        gradient_checkpointing=checkpointing,
        eval_every=every,
        max_steps=None,  # points of a sweep may take other rows, or more of them
        num_epochs=1.0,
    )
    return replace(config, trainer=passing)


def is_tried(config: TrainConfig) -> bool:
    """Returns whether a setting is `auto`, so that a trial decides it."""
    return AUTO in (config.trainer.tokens_per_device, config.trainer.gradient_checkpointing)


@dataclass(frozen=True)
class Workload:
    """The training examples and their cost in computed tokens.

    Attributes:
        tokens: Cost of each example in a forward of its own, shape (examples,).
        padded: Whether n examples cost n times the costliest one (padding); otherwise they cost their sum.
        per_forward: Examples per forward if there is no token budget.
        forwards_per_step: Forwards per optimizer step, over all ranks.
        sources: Source of each example, as `file:line`.
    """

    tokens: NDArray[np.int64]
    padded: bool
    per_forward: int
    forwards_per_step: int
    sources: list[str]

    @classmethod
    def of(cls, trainer: "DurableTrainer") -> "Workload":
        """Returns the workload of a trainer's training examples."""
        data, args, padded = trainer.train_dataset, trainer.args, getattr(trainer, "engine", None) is None
        if "prompt_ids" in data.column_names:
            lengths = PairTable.of(data).lengths
            tokens = pair_tokens(lengths if padded else to_segments(lengths), padded=padded)
        else:
            tokens = np.array([len(ids) for ids in data["input_ids"]], dtype=np.int64)
        forwards = args.gradient_accumulation_steps * world_size()
        return cls(tokens, padded, args.per_device_train_batch_size, forwards, list(data["source"]))

    @property
    def least(self) -> int:
        """The smallest possible budget: the costliest example alone."""
        return int(self.tokens.max())

    @property
    def most(self) -> int:
        """The largest sensible budget: it leaves `MIN_STEPS` optimizer steps in an epoch."""
        total = int(self.tokens.max()) * len(self.tokens) if self.padded else int(self.tokens.sum())
        # At least twice the costliest example: with few examples per rank, an odd one must fit beside another.
        return max(total // (MIN_STEPS * self.forwards_per_step), 2 * self.least)

    def costliest(self, budget: int | None) -> list[int]:
        """Returns the rows of the costliest forward: the longest ones that fill the budget, or `per_forward` many."""
        order = np.argsort(-self.tokens, kind="stable")
        count = self.per_forward if budget is None else fill(self.tokens[order], budget=budget, padded=self.padded)
        rows: list[int] = order[: max(count, 1)].tolist()
        return rows

    def cost(self, rows: list[int]) -> int:
        """Returns the computed tokens of these rows in one forward."""
        tokens = self.tokens[rows]
        return int(tokens.max()) * len(rows) if self.padded else int(tokens.sum())


def find_fit(work: Workload, fits: Trial, config: TrainConfig) -> Fit:
    """Decides settings that are `auto`: checkpointing if the costliest forward needs it, then the largest budget.

    All ranks call it and get the same result: checkpointing if one rank needs it, and the smallest of their budgets.

    Raises:
        UserError: On all ranks, if the costliest forward does not fit on one of them.
    """
    tokens, checkpointing = config.trainer.tokens_per_device, config.trainer.gradient_checkpointing
    first = work.costliest(work.least if tokens == AUTO else tokens)
    if checkpointing == AUTO:
        (is_needed,) = agree(not fits(first, False))
        checkpointing = bool(is_needed)
        if checkpointing and tokens != AUTO:
            (is_too_large,) = agree(not fits(first, True))
            _require_fit(not is_too_large, work, first, config)
    if tokens == AUTO:
        largest = find_largest(lambda budget: fits(work.costliest(budget), checkpointing), work.least, work.most)
        # Take the tokens that were tried, not the budget: other examples might fill more of that budget.
        filled = 0 if largest is None else work.cost(work.costliest(largest))
        (negative,) = agree(-filled)
        tokens = int(-negative)
        _require_fit(tokens > 0, work, first, config)
    return Fit(tokens, checkpointing)


def find_largest(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """Returns the largest number in [least, most] that fits, or one at most 1/16 below; None if `least` does not fit.

    Doubles from `least` on, then bisects, so that few trials are far above what fits.
    """
    if not fits(least):
        return None
    low, high = least, least
    while low == high and low < most:
        high = min(2 * low, most)
        low = high if fits(high) else low
    while high - low > max(low // RESOLUTION, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fit_on_cpu(work: Workload, config: TrainConfig) -> Fit:
    """Returns the fit for a CPU: `CPU_TOKENS` if that leaves enough steps, and no checkpointing."""
    tokens, checkpointing = config.trainer.tokens_per_device, config.trainer.gradient_checkpointing
    budget = min(max(CPU_TOKENS, work.least), work.most) if tokens == AUTO else tokens
    return Fit(budget, False if checkpointing == AUTO else checkpointing)


def recompute_activations(trainer: "DurableTrainer") -> None:
    """Turns gradient checkpointing on, in the same way as TRL does when it builds a trainer."""
    given = getattr(trainer.args, "activation_checkpointing_kwargs", None)  # its name in newer transformers versions
    for_torch = dict(given or trainer.args.gradient_checkpointing_kwargs or {})
    own = {name: for_torch.pop(name) for name in ("every_n_layers", "offload") if name in for_torch}
    trainer.model.gradient_checkpointing_enable(for_torch or None, **own)
    if hasattr(trainer.model, "peft_config"):
        trainer.model.enable_input_require_grads()


class DeviceTrial:
    """Tries forwards and backwards on a CUDA device, with the memory of gradients and optimizer states allocated.

    Context manager. In the block, the share `HEADROOM` of the memory cannot be allocated. Afterwards there is no
    trace: gradients and cached memory are freed, and the random state is unchanged.

    Attributes:
        num_tries: Number of trials so far, each of a forward and a backward.
    """

    def __init__(self, trainer: "DurableTrainer") -> None:
        self._trainer, self._device = trainer, trainer.args.device
        self._parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        self._held: list[torch.Tensor] | None = None
        self._peak = 0
        self.num_tries = 0

    def __enter__(self) -> "DeviceTrial":
        self._was_training = self._trainer.model.training
        self._was_checkpointing = self._trainer.model.is_gradient_checkpointing
        torch.cuda.set_per_process_memory_fraction(1 - HEADROOM, self._device)
        self._trainer.model.train()
        return self

    def __exit__(self, *_: object) -> None:
        model = self._trainer.model
        model.train(self._was_training)
        if not self._was_checkpointing and model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
        self._held = None
        self._free()
        torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def __call__(self, rows: list[int], checkpointing: bool) -> bool:
        """Returns whether one forward and backward of these training rows fits."""
        self.num_tries += 1
        if checkpointing:
            recompute_activations(self._trainer)
        torch.cuda.reset_peak_memory_stats(self._device)
        fits = self._try(rows)  # a function: the tensors in an error's frames are gone when it returns
        if fits:
            self._peak = torch.cuda.max_memory_allocated(self._device)
        self._free()
        return fits

    def describe_memory(self) -> str:
        """Describes the peak memory of the last forward that fitted."""
        _, total = torch.cuda.mem_get_info(self._device)
        return f"{self._peak / 2**30:.1f} of {total / 2**30:.1f} GiB, of which {HEADROOM:.0%} are left free"

    def _try(self, rows: list[int]) -> bool:
        try:
            with torch.random.fork_rng([self._device]):
                self._hold()
                self._trainer.try_rows(rows)
                torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError:
            return False
        return True

    def _hold(self) -> None:
        """Allocates the memory that training holds beside weights and activations."""
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        if self._held is None:
            num_bytes = sum(p.numel() for p in self._parameters) * count_state_bytes(self._trainer)
            if world_size() > 1:  # DistributedDataParallel has gradient buffers of the same size
                num_bytes += sum(p.numel() * p.element_size() for p in self._parameters)
            self._held = [torch.empty(int(num_bytes), dtype=torch.uint8, device=self._device)]

    def _free(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()


def count_state_bytes(trainer: "Trainer") -> float:
    """Returns the bytes that the optimizer holds per trained parameter, measured by a step on a small test weight."""
    trained = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    weight = torch.nn.Parameter(torch.zeros(256, 256, dtype=trained.dtype, device=trained.device))
    weight.grad = torch.zeros_like(weight)
    kind, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    optimizer = kind([weight], **arguments)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() * value.element_size() for value in states) / weight.numel()


def _require_fit(is_fitting: bool, work: Workload, rows: list[int], config: TrainConfig) -> None:
    if is_fitting:
        return
    settings = config.trainer
    which = [n for n in ("tokens_per_device", "gradient_checkpointing") if getattr(settings, n) == AUTO]
    what = " and ".join(f"trainer.{name}=auto" for name in which)
    where = f"{work.sources[rows[0]]} ({work.tokens[rows[0]]} tokens)"
    others = f" with {len(rows) - 1} more" if len(rows) > 1 else " alone"
    remedies = [f"data.max_length={max(int(work.tokens[rows[0]]) // 2, 2)}"]
    if config.peft.method is PeftMethod.none:
        remedies.insert(0, "peft=lora")
    if settings.gradient_checkpointing is False:
        remedies.insert(0, "trainer.gradient_checkpointing=true")
    if len(rows) > 1:
        remedies.insert(0, f"trainer.per_device_batch_size={len(rows) // 2}")
    sharded = " ".join([*(f"trainer.{name}={OTHERWISE[name]}" for name in which), "deepspeed=zero3"])
    raise UserError(
        f"{what}: the longest example, {where},{others} does not fit on a device with {HEADROOM:.0%} left free, "
        f"beside weights, gradients and optimizer states. Set {', or '.join(remedies)}; or on several GPUs {sharded}."
    )
