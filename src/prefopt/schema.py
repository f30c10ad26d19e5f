"""The settings: one dataclass per config group, each field with its default, unit and effect.

YAML files under `conf/` hold choices; defaults live here and nowhere else. `__post_init__` checks one group on its
own; `prefopt.checks` holds what spans groups.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, BooleanNode, IntegerNode
from omegaconf.errors import ValidationError

from prefopt.choices import (
    AUTO,
    F_DIVERGENCE_LOSS_TYPES,
    LOSS_TYPES,
    AlgorithmName,
    BatchOrder,
    DataFormat,
    EngineName,
    FDivergence,
    Kernels,
    LogArtifacts,
    LoggerName,
    LossOn,
    OffloadDevice,
    OnBadRow,
    OnControlToken,
    OnLongCompletion,
    PeftMethod,
    Precision,
    ReferenceMode,
    SFTLoss,
    WandbMode,
    WeightsDtype,
)
from prefopt.distributed.preemption import parse_time_limit
from prefopt.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def _or_auto(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting that is `auto` or of a type, converted to that type as OmegaConf converts others."""
    if value == AUTO:
        return AUTO
    try:
        return (BooleanNode if kind is bool else IntegerNode)().validate_and_convert(value)
    except ValidationError as error:
        allowed = "true, false" if kind is bool else "a whole number, null"
        raise UserError(f"{name}: must be {allowed} or auto, found {value!r}.") from error


@dataclass(kw_only=True)
class RunConfig:
    """Where a run lives and what identifies it."""

    name: str | None = None
    """Folder of the run under `root`. Default: the experiment's name and 8 hex digits of the configuration's hash."""
    root: str = "runs"
    """Folder that holds the runs."""
    overwrite: bool = False
    """Delete what an earlier run of this name left, and start afresh."""
    seed: int = 0
    """Seeds weights, data order, the train/held-out split and sampling; >= 0."""
    time_limit: str | None = None
    """Stop in time, with a checkpoint, after 90m, 2h, HH:MM:SS or D-HH:MM:SS. A scheduler's limit is found anyway."""
    timeout_s: int = 1800
    """Seconds, > 0, that a rank waits for another one in a joint operation before the run ends and names it."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"run.seed: must be >= 0, found {self.seed}.")
        require(self.timeout_s > 0, f"run.timeout_s: must be > 0, found {self.timeout_s}.")
        parse_time_limit(self.time_limit)
        if self.name is not None:
            plain = self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0")
            require(
                plain, f"run.name: must be one plain folder name, found {self.name!r}. Put its folder in run.root."
            )


@dataclass(kw_only=True)
class ModelConfig:
    """The policy before training, and its tokenizer."""

    path: str = MISSING
    """A Hugging Face model id, a folder, or `prefopt:<path>` for what ships with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: WeightsDtype = WeightsDtype.fp32
    """Data type of the loaded weights. `auto`: as stored. With full fine-tuning, float32 keeps small updates."""
    attn_implementation: str = "sdpa"
    """Attention of transformers: eager, sdpa, flash_attention_2, ..."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template (`prefopt:<path>` allowed)."""
    lora_targets: list[str] = field(default_factory=list)
    """Linear modules that get adapters when `peft.target_modules` is unset. Empty: all linear layers but the head."""
    trust_remote_code: bool = False
    """Run Python code that the model repository ships. Off unless you have read that code."""


@dataclass(kw_only=True)
class DataConfig:
    """Where examples come from, and what happens to rows that cannot be used."""

    train: Any = MISSING
    """A file (.jsonl .json .csv .tsv .parquet), a list, a glob, a `datasets` folder, or `hub:<id>[:<split>]`."""
    held_out: Any = None
    """Same as `train`. Unset: `held_out_fraction` of the training prompts are set apart."""
    held_out_fraction: float = 0.1
    """Share of prompts set apart when `held_out` is unset, in [0, 1). All rows of a prompt go to one side."""
    format: DataFormat = DataFormat.auto
    """Row format; `auto` recognises it from the keys of the first row and holds every row to it."""
    as_chat: bool = False
    """Make plain prompts a user's message and plain completions the assistant's, without blanks around them."""
    max_length: int = 1024
    """Tokens of prompt + completion, >= 2; a longer completion is handled by `on_long_completion`."""
    on_identical: OnBadRow = OnBadRow.refuse
    """A pair whose chosen equals its rejected (it has no gradient): refuse the file, or skip the row and count it."""
    on_empty: OnBadRow = OnBadRow.refuse
    """A row with an empty completion: refuse the file, or skip the row and count it."""
    on_long_prompt: OnBadRow = OnBadRow.refuse
    """A prompt that alone fills `max_length`: refuse the file, or skip the row and count it."""
    on_long_completion: OnLongCompletion = OnLongCompletion.truncate
    """A completion cut by `max_length` loses its end-of-sequence: truncate and count, skip and count, or refuse."""
    on_extra_eos: OnBadRow = OnBadRow.refuse
    """A completion whose text holds the end-of-sequence token: refuse the file, or skip the row and count it."""
    on_control_token: OnControlToken = OnControlToken.keep
    """A message whose text holds a control token (`<|im_end|>`): keep or strip it, and count; or refuse the file."""
    on_overlap: OnBadRow = OnBadRow.refuse
    """A training prompt that is also in `held_out`: refuse, or skip the training row and count it."""

    def __post_init__(self) -> None:
        require(
            0 <= self.held_out_fraction < 1,
            f"data.held_out_fraction: must be in [0, 1), found {self.held_out_fraction}.",
        )
        require(self.max_length >= 2, f"data.max_length: must be >= 2 tokens, found {self.max_length}.")


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
        for loss_type in self.loss_types:
            require(
                loss_type in LOSS_TYPES,
                f"algorithm.loss_type: unknown loss {loss_type!r}. Allowed: {', '.join(LOSS_TYPES)}.",
            )
        require(self.beta > 0, f"algorithm.beta: must be > 0, found {self.beta}.")
        require(
            0 <= self.label_smoothing < 0.5,
            f"algorithm.label_smoothing: must be in [0, 0.5), found {self.label_smoothing}.",
        )
        require(
            self.ld_alpha is None or 0 <= self.ld_alpha <= 1,
            f"algorithm.ld_alpha: must be in [0, 1], found {self.ld_alpha}.",
        )
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
class EngineConfig:
    """Who runs the forward of preference pairs, and on which layers; the numbers are the same."""

    name: EngineName = EngineName.auto
    """shared_prefix: every prompt once, no padding. trl: TRL's forward. auto: shared_prefix where the model allows."""
    kernels: Kernels = Kernels.auto
    """liger: fused RMSNorm, rotary embedding, MLP (CUDA, `prefopt[gpu]`). auto: where they can be had. none: off."""


@dataclass(kw_only=True)
class ReferenceConfig:
    """Where reference log-probs come from."""

    mode: ReferenceMode = ReferenceMode.store
    """store: computed once per model and pair, kept across runs. live: in every step. none: a reference of zeros."""
    path: str | None = None
    """Folder of the store. Unset: `$PREFOPT_CACHE/reference`, else ~/.cache/prefopt/reference. Runs share it."""


@dataclass(kw_only=True)
class PeftConfig:
    """Which weights are trained."""

    method: PeftMethod = PeftMethod.none
    """none: all weights. lora, dora: adapters. qlora: adapters on a 4-bit base (CUDA and bitsandbytes)."""
    r: int = 16
    """Rank of the adapters, >= 1."""
    alpha: int = 32
    """Adapter scale: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapters' input, in [0, 1)."""
    target_modules: list[str] | None = None
    """Names of linear modules. Default: the model's `lora_targets`."""

    def __post_init__(self) -> None:
        require(self.r >= 1, f"peft.r: must be >= 1, found {self.r}.")
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
    """Decay of the gradient's running mean."""
    adam_beta2: float = 0.999
    """Decay of the squared gradient's running mean."""
    adam_epsilon: float = 1e-8
    """Added to the denominator of Adam's update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(rate is None or rate > 0, f"optim.learning_rate: must be > 0, found {rate}.")
        require(0 <= self.warmup_ratio < 1, f"optim.warmup_ratio: must be in [0, 1), found {self.warmup_ratio}.")
        require(self.weight_decay >= 0, f"optim.weight_decay: must be >= 0, found {self.weight_decay}.")
        require(self.max_grad_norm >= 0, f"optim.max_grad_norm: must be >= 0, found {self.max_grad_norm}.")


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, batch, precision and cadence of training. Batch sizes count pairs (DPO) or rows (SFT)."""

    max_steps: int | None = None
    """Optimizer steps; unset: `num_epochs` decides."""
    num_epochs: float = 1.0
    """Passes over the training data, > 0."""
    per_device_batch_size: int = 8
    """Pairs (DPO: two sequences each) or rows (SFT) per device and forward."""
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
        self.tokens_per_device = _or_auto("trainer.tokens_per_device", self.tokens_per_device, int)
        self.gradient_checkpointing = _or_auto("trainer.gradient_checkpointing", self.gradient_checkpointing, bool)
        require(
            self.gradient_checkpointing is not None, "trainer.gradient_checkpointing: must be true, false or auto."
        )
        budget = self.tokens_per_device
        require(
            budget is None or budget == AUTO or budget >= 1,
            f"trainer.tokens_per_device: must be >= 1, auto or null, found {budget}.",
        )
        require(self.num_epochs > 0, f"trainer.num_epochs: must be > 0, found {self.num_epochs}.")


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


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics are mirrored; `metrics.jsonl` is always written."""

    name: LoggerName = LoggerName.wandb
    """wandb, or none."""
    project: str = "prefopt"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; unset: the key's own."""
    group: str | None = None
    """W&B group; default: the experiment's name."""
    job_type: str | None = None
    """W&B job type; unset: the algorithm's name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, of 1 to 64 letters each."""
    parent: str | None = None
    """Run that this one starts from, by folder or name. Unset: the one in whose folder `model.path` lies, if any."""
    mode: WandbMode = WandbMode.auto
    """auto: online when an API key is found, else offline. Never asks."""
    log_artifacts: LogArtifacts = LogArtifacts.reference
    """Model and data as W&B artifacts: none, reference (paths, sizes and checksums), or upload (their content too)."""

    def __post_init__(self) -> None:
        bad = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        require(not bad, f"logger.tags: W&B allows 1 to 64 letters per tag, found {bad[:1]}.")
        require(
            0 < len(self.project) <= 128 and not set(self.project) & set("/\\#?%:"),
            f"logger.project: 1 to 128 letters without / \\ # ? % :, found {self.project!r}.",
        )


@dataclass(kw_only=True)
class EvaluationConfig:
    """The exact evaluation behind the report."""

    batch_size: int = 8
    """Pairs (or rows) per forward. No effect on the numbers in fp32; in bf16 a margin may move in its third digit."""
    pairs: Any = None
    """Preference files for an SFT run, so that its report has a preference accuracy too."""
    max_train_examples: int = 256
    """Training examples measured for the train/held-out gap."""
    num_samples: int = 32
    """Held-out prompts that both models answer: for KL, lengths and the samples in the report; 0 turns it off."""
    num_shown_samples: int = 8
    """How many of these answers are shown side by side, at most."""
    max_new_tokens: int = 128
    """Limit of a generated answer."""
    neutral_texts: str | None = "prefopt:assets/neutral_texts.jsonl"
    """JSONL file with a `text` field, unrelated to the task: its perplexity shows drift. null turns it off."""
    bootstrap_resamples: int = 2000
    """Resamples behind the confidence intervals of means."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_train_examples", "max_new_tokens", "bootstrap_resamples"):
            require(getattr(self, name) >= 1, f"evaluation.{name}: must be >= 1, found {getattr(self, name)}.")
        for name in ("num_samples", "num_shown_samples"):
            require(getattr(self, name) >= 0, f"evaluation.{name}: must be >= 0, found {getattr(self, name)}.")


@dataclass(kw_only=True)
class TrainConfig:
    """The whole configuration of one training run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
