"""The allowed values of settings, as enums. Members are lower-case, since Hydra matches their names."""

from enum import Enum

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
"""The DPO losses of TRL 1.16."""

F_DIVERGENCE_LOSS_TYPES = frozenset(
    {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
)
"""Losses that depend only on the difference of rewards: only these have an f-divergence form."""

WHOLE_BATCH_LOSSES = frozenset({"sft", "aot", "aot_unpaired"})
"""Losses that depend on all pairs of a forward together, so that they change with the division of a step."""

AUTO = "auto"
"""Value of settings that are otherwise a number or true/false: prefopt decides."""


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class WeightsDtype(Enum):
    auto = "auto"
    fp32 = "float32"
    bf16 = "bfloat16"


class OnBadRow(Enum):
    refuse = "refuse"
    skip = "skip"


class OnLongCompletion(Enum):
    refuse = "refuse"
    skip = "skip"
    truncate = "truncate"


class OnControlToken(Enum):
    keep = "keep"
    strip = "strip"
    refuse = "refuse"


class DataFormat(Enum):
    auto = "auto"
    trl = "trl"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    openai = "openai"
    bedrock = "bedrock"
    swift = "swift"
    gemini = "gemini"
    anthropic = "anthropic"
    ab = "ab"
    ratings = "ratings"
    kto = "kto"


class PairChoice(Enum):
    best_worst = "best_worst"
    best_random = "best_random"
    all = "all"


class SFTLoss(Enum):
    nll = "nll"
    dft = "dft"


class LossOn(Enum):
    completions = "completions"
    all = "all"


class FDivergence(Enum):
    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js_divergence = "js_divergence"
    alpha_divergence = "alpha_divergence"


class EngineName(Enum):
    auto = "auto"
    shared_prefix = "shared_prefix"
    trl = "trl"


class Kernels(Enum):
    auto = "auto"
    liger = "liger"
    none = "none"


class ReferenceMode(Enum):
    store = "store"
    live = "live"
    none = "none"


class BatchOrder(Enum):
    random = "random"
    length_grouped = "length_grouped"


class PeftMethod(Enum):
    none = "none"
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


class LoggerName(Enum):
    none = "none"
    wandb = "wandb"


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"


class LogArtifacts(Enum):
    none = "none"
    reference = "reference"
    upload = "upload"


class OffloadDevice(Enum):
    none = "none"
    cpu = "cpu"


class ClusterKind(Enum):
    local = "local"
    slurm = "slurm"


class CheckName(Enum):
    """The checks of the audit, in the order in which they are told."""

    schema = "schema"
    identical = "identical"
    near_identical = "near_identical"
    empty = "empty"
    contradictory = "contradictory"
    duplicate = "duplicate"
    near_duplicate = "near_duplicate"
    leakage = "leakage"
    near_leakage = "near_leakage"
    prompt_mismatch = "prompt_mismatch"
    length_bias = "length_bias"
    refusal = "refusal"
    truncation = "truncation"
    control_tokens = "control_tokens"
    role_order = "role_order"
    language = "language"
    control_characters = "control_characters"
    mojibake = "mojibake"
    secrets = "secrets"
    personal_data = "personal_data"
    label_noise = "label_noise"
    separability = "separability"
    score_margin = "score_margin"
    slices = "slices"


class GateName(Enum):
    strict = "strict"
    default = "default"
    off = "off"
