"""The settings of training itself: what is optimised, which weights, how, for how long, and on how many devices."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from prefopt.config.choices import (
    AUTO,
    F_DIVERGENCE_LOSS_TYPES,
    LOSS_TYPES,
    AlgorithmName,
    BatchOrder,
    FDivergence,
    LossOn,
    OffloadDevice,
    PeftMethod,
    Precision,
    SFTLoss,
)
from prefopt.config.ranges import or_auto, require, require_at_most
from prefopt.process.errors import shorten

MAX_EPOCHS = 1_000_000
MAX_BATCH = 1_000_000
MAX_RANK = 16_384


@dataclass(kw_only=True)
class AlgorithmConfig:
    """What is optimised. `algorithm=sft` and `algorithm=dpo` bring their own fields."""

    name: AlgorithmName = MISSING
    """Set by the chosen option."""


@dataclass(kw_only=True)
class SFTAlgorithmConfig(AlgorithmConfig):
    """Supervised fine-tuning through TRL's SFTTrainer."""

    name: AlgorithmName = AlgorithmName.sft
    """Set by the chosen option."""
    loss_type: SFTLoss = SFTLoss.nll
    """nll: cross-entropy. dft: dynamic fine-tuning (arXiv 2508.05629)."""
    loss_on: LossOn = LossOn.completions
    """Train on the assistant's tokens alone, or on every token. Plain `text` rows are always trained whole."""


@dataclass(kw_only=True)
class DPOAlgorithmConfig(AlgorithmConfig):
    """Direct preference optimisation (arXiv 2305.18290) and its relatives through TRL's DPOTrainer."""

    name: AlgorithmName = AlgorithmName.dpo
    """Set by the chosen option."""
    loss_type: Any = "sigmoid"
    """One of TRL's losses, or a list of them (summed with `loss_weights`)."""
    loss_weights: list[float] | None = None
    """One weight per loss; default 1 for each."""
    beta: float = 0.1
    """Strength of the pull to the reference, > 0: higher stays closer. For IPO this is tau."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, in [0, 0.5): for `robust`, `exo_pair`, `aot` and `aot_unpaired`."""
    ld_alpha: float | None = None
    """LD-DPO: weight in [0, 1] of the tokens beyond the shorter completion's length. Unset: 1."""
    f_divergence_type: FDivergence = FDivergence.reverse_kl
    """Divergence that regularises the policy (f-DPO)."""
    f_alpha_divergence_coef: float = 0.5
    """Alpha of `alpha_divergence`."""
    use_weighting: bool = False
    """WPO: weigh pairs by the policy's own probability of them."""
    discopop_tau: float = 0.05
    """Temperature of the `discopop` loss."""
    sync_ref_model: bool = False
    """TR-DPO: let the reference follow the policy."""
    ref_model_mixup_alpha: float = 0.6
    """TR-DPO: share of the policy in the new reference."""
    ref_model_sync_steps: int = 512
    """TR-DPO: optimizer steps between two updates of the reference."""

    @property
    def loss_types(self) -> list[str]:
        """`loss_type` as a list."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    def __post_init__(self) -> None:
        found = shorten(repr(self.loss_type))
        require(
            isinstance(self.loss_type, str | list), f"algorithm.loss_type: must be a loss or a list, found {found}."
        )
        for loss_type in self.loss_types:
            require(
                loss_type in LOSS_TYPES,
                f"algorithm.loss_type: unknown loss {shorten(repr(loss_type))}. Allowed: {', '.join(LOSS_TYPES)}.",
            )
        require(
            0 <= self.label_smoothing < 0.5,
            f"algorithm.label_smoothing: must be in [0, 0.5), found {self.label_smoothing}.",
        )
        require(
            self.ld_alpha is None or 0 <= self.ld_alpha <= 1,
            f"algorithm.ld_alpha: must be in [0, 1], found {self.ld_alpha}.",
        )
        for name in ("discopop_tau", "beta"):
            require(getattr(self, name) > 0, f"algorithm.{name}: must be > 0, found {getattr(self, name)}.")
        alpha, steps = self.ref_model_mixup_alpha, self.ref_model_sync_steps
        require(0 <= alpha <= 1, f"algorithm.ref_model_mixup_alpha: must be in [0, 1], found {alpha}.")
        require(steps >= 1, f"algorithm.ref_model_sync_steps: must be >= 1, found {steps}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        losses = self.loss_types
        weights = self.loss_weights
        require(
            weights is None or len(weights) == len(losses),
            f"algorithm.loss_weights: {len(weights or [])} weights for {len(losses)} losses ({', '.join(losses)}).",
        )
        require(
            "exo_pair" not in losses or self.label_smoothing > 0,
            "algorithm.loss_type=exo_pair needs algorithm.label_smoothing > 0 (its paper: 0.001).",
        )
        plain = self.f_divergence_type is FDivergence.reverse_kl
        bad = [loss for loss in losses if loss not in F_DIVERGENCE_LOSS_TYPES]
        require(
            plain or not bad,
            f"algorithm.f_divergence_type={self.f_divergence_type.name} has no form for {', '.join(bad)}. "
            f"Use reverse_kl, or a loss of {', '.join(sorted(F_DIVERGENCE_LOSS_TYPES))}.",
        )
        sorting = [loss for loss in losses if loss in ("aot", "aot_unpaired")]
        require(
            not (self.use_weighting and sorting),
            f"algorithm.use_weighting=true cannot go with {', '.join(sorting)}: these losses sort the pairs.",
        )


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
