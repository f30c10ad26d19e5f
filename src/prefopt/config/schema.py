"""The settings: one dataclass per config group, each field with its default, unit and effect.

YAML files under `conf/` hold choices; defaults live here and nowhere else; those of training itself stand in
`prefopt.config.trainer`. `__post_init__` checks one group on its own; `prefopt.config.checks` holds what spans groups.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from prefopt.config.algorithms import AlgorithmConfig, DPOAlgorithmConfig, SFTAlgorithmConfig
from prefopt.config.choices import (
    DataFormat,
    EngineName,
    Kernels,
    LogArtifacts,
    LoggerName,
    OnBadRow,
    OnControlToken,
    OnLongCompletion,
    ReferenceMode,
    WandbMode,
    WeightsDtype,
)
from prefopt.config.durations import parse_time_limit
from prefopt.config.ranges import require, require_at_most, require_folder_name
from prefopt.config.trainer import DeepSpeedConfig, OptimConfig, PeftConfig, TrainerConfig
from prefopt.process.errors import shorten

__all__ = [
    "AlgorithmConfig",
    "DPOAlgorithmConfig",
    "DataConfig",
    "DeepSpeedConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimConfig",
    "PeftConfig",
    "ReferenceConfig",
    "RunConfig",
    "SFTAlgorithmConfig",
    "TrainConfig",
    "TrainerConfig",
]

MAX_RESAMPLES = 100_000
MAX_NEW_TOKENS = 1_000_000
MAX_TIMEOUT_S = 30 * 24 * 3600


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
    """Seeds weights, data order, the train/held-out split and sampling; >= 0 and below 2^32."""
    time_limit: str | None = None
    """Stop in time, with a checkpoint, after 90m, 2h, HH:MM:SS or D-HH:MM:SS. A scheduler's limit is found anyway."""
    timeout_s: int = 1800
    """Seconds, > 0 and up to 30 days, that a rank waits for another one in a joint operation before the run ends and
    names it."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, f"run.seed: must be >= 0 and below 2^32, found {shorten(str(self.seed))}.")
        require(self.timeout_s > 0, f"run.timeout_s: must be > 0, found {self.timeout_s}.")
        require_at_most("run.timeout_s", self.timeout_s, MAX_TIMEOUT_S, "30 days")
        parse_time_limit(self.time_limit)
        if self.name is not None:
            require_folder_name("run.name", self.name)


@dataclass(kw_only=True)
class ModelConfig:
    """The policy before training, and its tokenizer."""

    path: str = MISSING
    """A Hugging Face model id, a folder, or `prefopt:<path>` for what ships with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; a folder has none."""
    dtype: WeightsDtype = WeightsDtype.fp32
    """Data type of the loaded weights. `auto`: as stored. With full fine-tuning, float32 keeps small updates."""
    attn_implementation: str = "sdpa"
    """Attention of transformers: eager, sdpa, flash_attention_2, ..."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template (`prefopt:<path>` allowed)."""
    lora_targets: list[str] = field(default_factory=list)
    """Linear modules that get adapters when `peft.target_modules` is unset. Empty: all linear layers but the head."""
    resize_embeddings: bool = False
    """Where the tokenizer has more tokens than the embedding has rows, add rows, each the mean of all others. Else
    such a tokenizer is refused. Adapters leave the new rows as they are."""
    trust_remote_code: bool = False
    """Run Python code that the model repository ships. Off unless you have read that code."""

    def __post_init__(self) -> None:
        require(self.path != "", "model.path: must be a model id or a folder, found an empty text.")


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
    """A control token (`<|im_end|>`) in messages, calls or tools: keep or strip it, and count; or refuse the file."""
    on_overlap: OnBadRow = OnBadRow.refuse
    """A training prompt that is also in `held_out`: refuse, or skip the training row and count it."""

    def __post_init__(self) -> None:
        require(
            0 <= self.held_out_fraction < 1,
            f"data.held_out_fraction: must be in [0, 1), found {self.held_out_fraction}.",
        )
        require(self.max_length >= 2, f"data.max_length: must be >= 2 tokens, found {self.max_length}.")


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
            f"logger.project: 1 to 128 letters without / \\ # ? % :, found {shorten(repr(self.project))}.",
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
    """Limit of a generated answer, at most a million."""
    neutral_texts: str | None = "prefopt:assets/neutral_texts.jsonl"
    """JSONL file with a `text` field, unrelated to the task: its perplexity shows drift. null turns it off."""
    bootstrap_resamples: int = 2000
    """Resamples behind the confidence intervals of means, at most 100,000."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_train_examples", "max_new_tokens", "bootstrap_resamples"):
            require(getattr(self, name) >= 1, f"evaluation.{name}: must be >= 1, found {getattr(self, name)}.")
        more = "more change no digit that is shown"
        require_at_most("evaluation.bootstrap_resamples", self.bootstrap_resamples, MAX_RESAMPLES, more)
        require_at_most("evaluation.max_new_tokens", self.max_new_tokens, MAX_NEW_TOKENS, "an answer has to end")
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
