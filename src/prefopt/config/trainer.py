"""The settings of training itself: what is optimised, which weights, how, for how long, and on how many devices."""

from dataclasses import dataclass, field
from typing import Any

from prefopt.config.choices import (
    AUTO,
    BatchOrder,
    OffloadDevice,
    PeftMethod,
    Precision,
)
from prefopt.config.ranges import or_auto, require, require_at_most, require_code

MAX_EPOCHS = 1_000_000
MAX_BATCH = 1_000_000
MAX_RANK = 16_384


@dataclass(kw_only=True)
class PeftConfig:
    """Which weights are trained."""

    method: PeftMethod = PeftMethod.none
    """none: all weights. lora, dora: adapters. qlora: adapters on a 4-bit base (CUDA and bitsandbytes)."""
    r: int = 16
    """Rank of the adapters, >= 1 and at most 16,384."""
    alpha: int = 32
    """Adapter scale, >= 1: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapters' input, in [0, 1)."""
    target_modules: list[str] | None = None
    """Names of linear modules, at least one. Default: the model's `lora_targets`."""

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            require(getattr(self, name) >= 1, f"peft.{name}: must be >= 1, found {getattr(self, name)}.")
        require_at_most("peft.r", self.r, MAX_RANK, "no model's layers are wider")
        require(
            self.target_modules is None or (all(self.target_modules) and bool(self.target_modules)),
            f"peft.target_modules: must name modules, found {self.target_modules}. Leave it out for those of "
            "model.lora_targets, which takes [] for all linear layers.",
        )
        require(0 <= self.dropout < 1, f"peft.dropout: must be in [0, 1), found {self.dropout}.")


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: str = "adamw_torch"
    """An optimizer name of transformers' TrainingArguments. On CUDA `adamw_torch` uses torch's fused kernel."""
    learning_rate: float | None = None
    """Peak learning rate, > 0. Unset: 1e-6 for DPO and 2e-5 for SFT, ten times that with adapters."""
    scheduler: str = "linear"
    """A schedule name of transformers: linear, cosine, constant, constant_with_warmup, ..."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises, in [0, 1)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, >= 0."""
    adam_beta1: float = 0.9
    """Decay of the gradient's running mean, in [0, 1)."""
    adam_beta2: float = 0.999
    """Decay of the squared gradient's running mean, in [0, 1)."""
    adam_epsilon: float = 1e-8
    """Added to the denominator of Adam's update, > 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(rate is None or rate > 0, f"optim.learning_rate: must be > 0, found {rate}.")
        require(0 <= self.warmup_ratio < 1, f"optim.warmup_ratio: must be in [0, 1), found {self.warmup_ratio}.")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}: must be in [0, 1), found {getattr(self, name)}.")
        require(self.adam_epsilon > 0, f"optim.adam_epsilon: must be > 0, found {self.adam_epsilon}.")
        require(self.weight_decay >= 0, f"optim.weight_decay: must be >= 0, found {self.weight_decay}.")
        require(self.max_grad_norm >= 0, f"optim.max_grad_norm: must be >= 0, found {self.max_grad_norm}.")


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, batch, precision and cadence of training. Batch sizes count pairs (DPO) or rows (SFT)."""

    max_steps: int | None = None
    """Optimizer steps; unset: `num_epochs` decides."""
    num_epochs: float = 1.0
    """Passes over the training data, > 0 and at most a million; a part of a pass ends with a whole step."""
    per_device_batch_size: int = 8
    """Pairs (DPO: two sequences each) or rows (SFT) per device and forward; this and the next two: up to a million."""
    tokens_per_device: Any = None
    """DPO: instead of a fixed number, as many pairs per device and forward as fit this many computed tokens; auto:
    the largest budget that fits on the device, found by trial. A run keeps it."""
    batch_order: BatchOrder = BatchOrder.random
    """DPO: random, or length_grouped: pairs of like length share a batch, which differ from epoch to epoch."""
    gradient_accumulation_steps: int = 1
    """Forwards per optimizer step."""
    batch_size: int | None = None
    """Pairs or rows per optimizer step over all ranks, instead of `gradient_accumulation_steps`. A run keeps it."""
    precision: Precision = Precision.fp32
    """fp32, or bf16 mixed precision where the hardware has it."""
    gradient_checkpointing: Any = False
    """Recompute activations in the backward pass: less memory, about a third more compute. auto: only where the
    longest examples do not fit without, found by trial. A run keeps it."""
    log_every: int = 5
    """Optimizer steps between two lines of metrics."""
    eval_every: int | None = None
    """Optimizer steps between two exact held-out evaluations; unset: only at the end."""
    save_every: int = 100
    """Optimizer steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest complete checkpoints that are kept, >= 1."""
    keep_best: str | None = None
    """A held-out metric, such as preference_accuracy or loss: the checkpoint where it was best is kept as well."""
    log_rows: bool = False
    """Write to rows.jsonl which rows of the training data each optimizer step saw."""
    callbacks: list[str] = field(default_factory=list)
    """Your own code to call during training: `[module:Class]`, classes of transformers' TrainerCallback. See
    docs/api.md."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of TRL's DPOConfig or SFTConfig: `+trainer.extra.<field>=<value>`."""

    def __post_init__(self) -> None:
        for name in (
            "per_device_batch_size",
            "gradient_accumulation_steps",
            "log_every",
            "save_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"trainer.{name}: must be >= 1, found {getattr(self, name)}.")
        for name in ("max_steps", "eval_every", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"trainer.{name}: must be >= 1 or null, found {value}.")
        for name in ("per_device_batch_size", "gradient_accumulation_steps", "batch_size"):
            require_at_most(f"trainer.{name}", getattr(self, name), MAX_BATCH, "an optimizer step has to end")
        self.tokens_per_device = or_auto("trainer.tokens_per_device", self.tokens_per_device, int)
        self.gradient_checkpointing = or_auto("trainer.gradient_checkpointing", self.gradient_checkpointing, bool)
        require(
            self.gradient_checkpointing is not None, "trainer.gradient_checkpointing: must be true, false or auto."
        )
        for name in self.callbacks:
            require_code("trainer.callbacks", name)
        budget = self.tokens_per_device
        require(
            budget is None or budget == AUTO or budget >= 1,
            f"trainer.tokens_per_device: must be >= 1, auto or null, found {budget}.",
        )
        require(
            0 < self.num_epochs <= MAX_EPOCHS,
            f"trainer.num_epochs: must be > 0 and at most {MAX_EPOCHS:,}, found {self.num_epochs}.",
        )


@dataclass(kw_only=True)
class DeepSpeedConfig:
    """ZeRO sharding; needs a launch through torchrun."""

    stage: int | None = None
    """ZeRO stage 1, 2 or 3; unset: no DeepSpeed."""
    offload_optimizer: OffloadDevice = OffloadDevice.none
    """Keep optimizer states in host memory (cpu)."""
    offload_parameters: OffloadDevice = OffloadDevice.none
    """Keep weights in host memory (cpu); stage 3 only."""

    def __post_init__(self) -> None:
        require(self.stage in (None, 1, 2, 3), f"deepspeed.stage: must be 1, 2, 3 or null, found {self.stage}.")
        require(
            self.offload_parameters is OffloadDevice.none or self.stage == 3,
            "deepspeed.offload_parameters needs deepspeed.stage=3.",
        )
