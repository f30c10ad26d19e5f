"""The settings: one dataclass per config group, each field with its default, unit and effect.

Defaults are defined only here and, for training, in `prefopt.config.trainer`; the YAML files under `conf/` hold
choices. `__post_init__` checks one group on its own; `prefopt.config.checks` checks several groups together.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from prefopt.config.algorithms import AlgorithmConfig, DPOAlgorithmConfig, SFTAlgorithmConfig
from prefopt.config.choices import (
    AUTO,
    DataFormat,
    EngineName,
    Kernels,
    LogArtifacts,
    LoggerName,
    OnBadRow,
    OnControlToken,
    OnLongCompletion,
    PairChoice,
    ReferenceMode,
    WandbMode,
    WeightsDtype,
)
from prefopt.config.contestants import read_contestants
from prefopt.config.durations import parse_time_limit
from prefopt.config.gate import GateConfig
from prefopt.config.judges import read_judges
from prefopt.config.limits import LimitsConfig
from prefopt.config.mixture import parts_of
from prefopt.config.ranges import or_auto, require, require_at_most, require_folder_name
from prefopt.config.tasks import read_tasks
from prefopt.config.trainer import DeepSpeedConfig, OptimConfig, PeftConfig, TrainerConfig
from prefopt.process.errors import shorten

__all__ = [
    "AlgorithmConfig",
    "DPOAlgorithmConfig",
    "DataConfig",
    "DeepSpeedConfig",
    "EngineConfig",
    "EvaluationConfig",
    "GateConfig",
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
COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "text", "system", "tools", "label")
"""Names of columns that `data.columns` can map to a file's."""
BAD_ROW_SWITCHES = ("on_identical", "on_empty", "on_long_prompt", "on_extra_eos", "on_overlap")
"""Settings of `data` that follow `on_bad` where they are unset."""
MAX_TIMEOUT_S = 30 * 24 * 3600


@dataclass(kw_only=True)
class RunConfig:
    """Folder, name and limits of a run."""

    name: str | None = None
    """Folder of the run under `root`. Default: the experiment's name and 8 hex digits of the configuration's hash."""
    root: str = "runs"
    """Folder that holds the runs."""
    overwrite: bool = False
    """Delete the earlier run of this name, if there is one, and start afresh."""
    seed: int = 0
    """Seed of new weights, data order, the train/held-out split and sampling; >= 0 and below 2^32."""
    time_limit: str | None = None
    """Stop with a checkpoint before this time ends: 90m, 2h, HH:MM:SS or D-HH:MM:SS. A scheduler's limit is found."""
    timeout_s: int = 1800
    """Seconds, > 0 and up to 30 days, that a rank waits for another rank. Then the run ends with an error that names
    that rank."""

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
    """A Hugging Face model id, a folder, or `prefopt:<path>` for a model that ships with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; not for a folder."""
    dtype: WeightsDtype = WeightsDtype.fp32
    """Data type of the loaded weights. `auto`: as stored. With full fine-tuning, float32 keeps small updates."""
    attn_implementation: str = "sdpa"
    """Attention implementation of transformers: eager, sdpa, flash_attention_2, ..."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template (`prefopt:<path>` allowed)."""
    lora_targets: list[str] = field(default_factory=list)
    """Linear modules that get adapters if `peft.target_modules` is unset. Empty: all linear layers except the head."""
    resize_embeddings: bool = False
    """If the tokenizer has more tokens than the embedding has rows, add rows, each the mean of all others. If false,
    such a tokenizer is refused. Training with adapters does not change the new rows."""
    trust_remote_code: bool = False
    """Run Python code from the model repository. Turn it on only if you have read that code."""

    def __post_init__(self) -> None:
        require(self.path != "", "model.path: must be a model id or a folder, found an empty text.")


@dataclass(kw_only=True)
class DataConfig:
    """Sources of the examples, and what to do with rows that cannot be used."""

    train: Any = MISSING
    """A file (.jsonl .json .csv .tsv .parquet), a list, a glob, a `datasets` folder, or `hub:<id>[:<split>]`. Or a
    mixture: `'data.train=[{path: chat.jsonl, weight: 0.5}, {path: style.jsonl, name: style, max_rows: 1000}]'`. In
    each epoch, rows of weight 2 are seen twice, of weight 0.5 those of half the prompts, chosen by `shuffle_seed`; the
    report has the held-out results of each part by its name (unset: that of the file)."""
    held_out: Any = None
    """Same as `train`, but without weights. Unset: `held_out_fraction` of the training prompts are held out; rows are
    repeated after that."""
    held_out_fraction: float = 0.1
    """Share of prompts held out if `held_out` is unset, in [0, 1). All rows of a prompt go to the same side."""
    test: Any = None
    """Data for the last measurement, after all choices are made; same as `held_out`. Training, its evaluations,
    searches and the report never look at it: `prefopt evaluate run=<folder> split=test` does, and counts the looks."""
    max_rows: int | None = None
    """Most training rows that are used, before some are held out: the first ones, or with `shuffle_seed` some of all.
    So it is for `max_rows` of a part of a mixture."""
    shuffle_seed: int | None = None
    """Seed of the rows that `max_rows` keeps, and of the prompts that a broken weight adds. The choice depends on the
    rows' content, not on their order. Unset: the first rows are kept, and the seed of weights is 0."""
    format: DataFormat = DataFormat.auto
    """Row format; `auto` recognises it from the keys of the first row, and every row must have it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the file's columns where they differ: `'data.columns={prompt: question, chosen: good, rejected: bad}'`.
    It holds for `train` and `held_out`; a file that has the usual names needs none."""
    tag: str | None = None
    """A column whose value is the tag of a row, such as its topic: the audit (`slices`) and the report's `slices` tell
    their numbers for the 20 most frequent tags. It belongs to the rows of `train` and `held_out`."""
    pairs: PairChoice | None = None
    """Pairs of a row with several scored answers: best_worst (also if unset), best_random (the best one against one
    of the worse ones, which a hash of the row chooses), or all in which one answer is better."""
    min_margin: float | None = None
    """Least difference of the scores of a pair's answers; pairs below it are left out and counted. Unset: any."""
    as_chat: Any = AUTO
    """Turn plain prompts into user messages and plain completions into assistant messages, without outer blanks. auto:
    if the model has a chat template and every row is one question, or if the rows have a system prompt; it is said.
    Transcripts, rows of `text` and texts with control tokens stay as they are. false: never; true: always."""
    system: str | None = None
    """System prompt of conversations that have none of their own: the text, or a file (.txt, .md) that holds it."""
    max_length: int = 1024
    """Most tokens of prompt + completion, >= 2; `on_long_completion` says what to do with longer rows."""
    on_bad: OnBadRow | None = None
    """skip: leave out and count every row that cannot be used (broken JSON, missing fields, another shape than the
    first, and all of the switches below that are unset). Unset: such rows are refused, all in one error."""
    on_identical: OnBadRow | None = None
    """A pair with equal chosen and rejected (it has no gradient): refuse the file, or skip the row and count it.
    Unset: as `on_bad`, else refuse; so it is for the other switches of refuse and skip."""
    on_empty: OnBadRow | None = None
    """A row with an empty completion: refuse the file, or skip the row and count it."""
    on_long_prompt: OnBadRow | None = None
    """A prompt that alone fills `max_length`: refuse the file, or skip the row and count it."""
    on_long_completion: OnLongCompletion = OnLongCompletion.truncate
    """A completion cut by `max_length` loses its end-of-sequence: truncate and count, skip and count, or refuse."""
    on_extra_eos: OnBadRow | None = None
    """A completion whose text contains the end-of-sequence token: refuse the file, or skip the row and count it."""
    on_control_token: OnControlToken = OnControlToken.keep
    """A control token (`<|im_end|>`) in messages, tool calls or tools: keep or strip it, and count; or refuse."""
    on_overlap: OnBadRow | None = None
    """A training prompt that is also in `held_out`: refuse, or skip the training row and count it. With
    `data/gate=off` it is trained, and the report says so."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What findings of the audit stop a run; chosen by `data/gate`."""

    def __post_init__(self) -> None:
        require(
            0 <= self.held_out_fraction < 1,
            f"data.held_out_fraction: must be in [0, 1), found {self.held_out_fraction}.",
        )
        self.as_chat = or_auto("data.as_chat", self.as_chat, bool)
        require(self.as_chat is not None, "data.as_chat: must be true, false or auto.")
        specs = {"data.train": self.train, "data.held_out": self.held_out, "data.test": self.test}
        parts = [part for setting, spec in specs.items() for part in parts_of(spec, setting)]
        require(self.max_rows is None or self.max_rows >= 1, f"data.max_rows: must be >= 1, found {self.max_rows}.")
        is_chosen = any(part.max_rows is not None or part.weight % 1 for part in parts) or self.max_rows is not None
        require(
            self.shuffle_seed is None or is_chosen,
            f"data.shuffle_seed={self.shuffle_seed} has no effect, since all rows are used. Set max_rows, or a weight "
            "such as 0.5, or leave it out.",
        )
        unknown = sorted(set(self.columns) - set(COLUMNS))
        require(
            not unknown,
            f"data.columns: {', '.join(unknown)}: no column that prefopt reads. It maps {', '.join(COLUMNS)} to the "
            "file's names, such as 'data.columns={prompt: question}'.",
        )
        require(self.tag != "", "data.tag: must be the name of a column, found an empty text.")
        sources = Counter(self.columns.values())
        twice = [name for name, count in sources.items() if count > 1]
        require(not twice, f"data.columns: {', '.join(twice)} is named twice. One column is read as one thing.")
        require(self.max_length >= 2, f"data.max_length: must be >= 2 tokens, found {self.max_length}.")

    def decide(self, switch: str) -> OnBadRow | OnLongCompletion | OnControlToken:
        """Returns what happens to rows with a defect: as the setting `switch` says, else `on_bad`, else refuse."""
        chosen: OnBadRow | OnLongCompletion | OnControlToken | None = getattr(self, switch)
        return chosen or self.on_bad or OnBadRow.refuse


@dataclass(kw_only=True)
class EngineConfig:
    """Implementation of the forward of preference pairs, and of layers; results are the same."""

    name: EngineName = EngineName.auto
    """shared_prefix: each prompt once, no padding. trl: TRL's forward. auto: shared_prefix if the model allows it."""
    kernels: Kernels = Kernels.auto
    """liger: fused RMSNorm, rotary embedding, MLP (CUDA, `prefopt[gpu]`). auto: liger if available. none: off."""


@dataclass(kw_only=True)
class ReferenceConfig:
    """Source of the reference log-probs."""

    mode: ReferenceMode = ReferenceMode.store
    """store: computed once per model and pair, and reused by all runs. live: computed in every step. none: zeros."""
    path: str | None = None
    """Folder of the store, shared by runs. Unset: `$PREFOPT_CACHE/reference`, else ~/.cache/prefopt/reference."""


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics are logged besides `metrics.jsonl`, which is always written."""

    name: LoggerName = LoggerName.wandb
    """wandb (Weights & Biases, W&B) or none."""
    project: str = "prefopt"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; unset: the default of the API key."""
    group: str | None = None
    """W&B group; default: the experiment's name."""
    job_type: str | None = None
    """W&B job type; unset: the algorithm's name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, of 1 to 64 letters each."""
    parent: str | None = None
    """Run whose model this run starts from: its folder or name. Unset: the run that `model.path` belongs to."""
    mode: WandbMode = WandbMode.auto
    """auto: online if an API key is found, else offline. Never asks for a key."""
    log_artifacts: LogArtifacts = LogArtifacts.reference
    """Log model and data as W&B artifacts: none, reference (paths, sizes, checksums), or upload (also the content)."""

    def __post_init__(self) -> None:
        bad = [tag for tag in self.tags if not 1 <= len(tag) <= 64]
        require(not bad, f"logger.tags: W&B allows 1 to 64 letters per tag, found {bad[:1]}.")
        require(
            0 < len(self.project) <= 128 and not set(self.project) & set("/\\#?%:"),
            f"logger.project: 1 to 128 letters without / \\ # ? % :, found {shorten(repr(self.project))}.",
        )


@dataclass(kw_only=True)
class EvaluationConfig:
    """The evaluation whose results are in the report."""

    batch_size: int = 8
    """Pairs (or rows) per forward. No effect on the numbers in fp32; in bf16 a margin may move in its third digit."""
    pairs: Any = None
    """Preference data for an SFT run, so that its report also has a preference accuracy."""
    max_train_examples: int = 256
    """Most training examples that are measured, for the train/held-out gap."""
    num_samples: int = 32
    """Held-out prompts that both models answer, for KL, answer lengths and samples in the report; 0 turns it off.
    Where answers are judged or checked, num_judged decides instead."""
    num_judged: int = 512
    """Most held-out prompts, each once, that all contestants answer where `judges` or `tasks` are set."""
    num_shown_samples: int = 8
    """Most of these answers that the report shows side by side."""
    max_new_tokens: int = 128
    """Most tokens of a generated answer, at most a million."""
    neutral_texts: str | None = "prefopt:assets/neutral_texts.jsonl"
    """JSONL file of texts (field `text`) unrelated to the task; their perplexity shows drift. null turns it off."""
    bootstrap_resamples: int = 2000
    """Bootstrap resamples for the confidence intervals of means, at most 100,000."""
    contestants: Any = field(default_factory=lambda: ["base", "tuned"])
    """What answers the held-out prompts: `base`, `tuned`, folders of models or runs, or tables {name, model, endpoint,
    system, examples, ...}. A base with a prompt of its own is what most would do instead of tuning."""
    judges: Any = field(default_factory=list)
    """Who says which answers are better, the deciding one first: tables {kind: rule, ...}, or names of kinds: rule,
    classifier, reward_model, model, endpoint, panel. Without one, answers are shown and not judged."""
    tasks: Any = field(default_factory=list)
    """What is checked in answers: tables {kind: json_schema, ...}, or names of kinds: json_schema, label,
    text_overlap, style, code, custom."""
    regression: str | None = "prefopt:assets/regression.jsonl"
    """JSONL file of plain questions with checks, which base and tuned answer where answers are judged or checked: what
    the base could do must not break. null turns it off."""
    min_gain: float = 0.05
    """A gain in a share, such as preference accuracy, counts as shown once its whole interval is above this."""
    min_loss_gain: float = 0.02
    """The same for the loss of demonstrations, in nats per token: about 2 % of the perplexity."""
    min_prompts: int = 30
    """Least number of held-out prompts for a gain to count as shown: intervals were simulated from 30 on."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """From which numbers on a report warns, or calls a model ruined."""

    def __post_init__(self) -> None:
        read_contestants(self.contestants)
        read_judges(self.judges)
        read_tasks(self.tasks)
        share = f"evaluation.min_gain: must be in [0, 1), found {self.min_gain}. 5 points are 0.05."
        require(0 <= self.min_gain < 1, share)
        require(self.min_loss_gain >= 0, f"evaluation.min_loss_gain: must be >= 0, found {self.min_loss_gain}.")
        require(self.min_prompts >= 2, f"evaluation.min_prompts: must be >= 2, found {self.min_prompts}.")
        for name in ("batch_size", "max_train_examples", "max_new_tokens", "bootstrap_resamples", "num_judged"):
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
