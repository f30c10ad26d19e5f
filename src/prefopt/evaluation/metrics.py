"""The numbers of a run: where they stand, how they are written, and what is better."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Unit:
    """How a value is written. `decimals=None` keeps three significant digits, two below 0.1."""

    scale: float = 1.0
    decimals: int | None = None
    prefix: str = ""
    suffix: str = ""
    signed: bool = False


PERCENT = Unit(scale=100, decimals=1, suffix=" %")
POINTS = Unit(scale=100, decimals=1, suffix=" points", signed=True)
NUMBER = Unit()
CHANGE = Unit(signed=True)
RATIO = Unit(prefix="\u00d7 ")
RELATIVE = Unit(scale=100, decimals=0, suffix=" %", signed=True)
ACCURACY, LOSS, KL = "preference_accuracy", "loss", "kl_per_token"
BASE_ACCURACY = "base_preference_accuracy"
OUTSIDE = "outside_training_s"


class Better(Enum):
    """Which end of a metric is the good one."""

    higher = "higher is better"
    lower = "lower is better"
    near_zero = "nearer to 0 is better"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a run.

    Attributes:
        key: Its name in `--rank-by`, in compare.csv and in `RunRecord.metrics`.
        label: Head of its column.
        title: What it is, in a few words.
        path: Where it stands in report.json and, joined by slashes, in W&B's summary; empty if it is derived.
        logged: Its name in the held-out lines of metrics.jsonl, for runs without a report.
    """

    key: str
    label: str
    title: str
    unit: Unit
    better: Better
    path: tuple[str, ...] = ()
    logged: str | None = None

    @property
    def is_speed(self) -> bool:
        """Time or throughput: the machine's as much as the run's."""
        return self.path[:1] == ("throughput",) or self.key == OUTSIDE

    def badness(self, value: float) -> float:
        """A number that is smaller for the better of two values."""
        return {Better.higher: -value, Better.lower: value, Better.near_zero: abs(value)}[self.better]


def _tuned(key: str) -> tuple[str, ...]:
    return ("held_out", "tuned", key)


METRICS = (
    Metric(
        ACCURACY, "accuracy", "Held-out preference accuracy", PERCENT, Better.higher, _tuned(ACCURACY),
        "preference_accuracy",
    ),
    Metric("gain", "gain", "Accuracy, tuned - base", POINTS, Better.higher, ("held_out", "gain", ACCURACY)),
    Metric("mean_margin", "margin", "Held-out margin, nats per token", NUMBER, Better.higher, _tuned("mean_margin")),
    Metric(
        "reward_accuracy", "reward accuracy", "Held-out reward accuracy", PERCENT, Better.higher,
        _tuned("reward_accuracy"), "rewards/accuracies",
    ),
    Metric(
        "reward_margin", "reward margin", "Held-out reward margin; scales with beta", NUMBER, Better.higher,
        _tuned("reward_margin"), "rewards/margins",
    ),
    Metric(LOSS, "loss", "Held-out loss, nats per token", NUMBER, Better.lower, _tuned(LOSS), "loss"),
    Metric(KL, "KL", "KL to the base, nats per token", NUMBER, Better.lower, ("drift", KL)),
    Metric(
        "kl_per_response", "KL/response", "KL to the base per response, of cut ones their beginnings", NUMBER,
        Better.lower, ("drift", "kl_per_response"),
    ),
    Metric(
        "neutral_ratio", "neutral", "Perplexity of neutral text, tuned / base", RATIO, Better.lower,
        ("drift", "perplexity", "ratio"),
    ),
    Metric("length_change", "length", "Length of own answers, change from base", RELATIVE, Better.near_zero),
    Metric(
        "chosen_change", "chosen", "Log-prob per token of chosen answers, tuned - base", CHANGE, Better.higher,
        ("likelihood", "chosen"),
    ),
    Metric(
        "rejected_change", "rejected", "Log-prob per token of rejected answers, tuned - base", CHANGE, Better.lower,
        ("likelihood", "rejected"),
    ),
    Metric(
        "overfitting_gap", "gap", "Accuracy, train - held-out", POINTS, Better.near_zero,
        ("overfitting", ACCURACY, "gap"),
    ),
    Metric("train_time_s", "time", "Time of training steps", Unit(), Better.lower, ("throughput", "train_time_s")),
    Metric(
        "pairs_per_s", "pairs/s", "Pairs (SFT: rows) per second", NUMBER, Better.higher, ("throughput", "pairs_per_s")
    ),
    Metric("tokens_per_s", "tokens/s", "Tokens per second", NUMBER, Better.higher, ("throughput", "tokens_per_s")),
    Metric(OUTSIDE, "outside", "Time outside training steps: start, evaluation, saving, report", Unit(), Better.lower),
    Metric(
        BASE_ACCURACY, "base accuracy", "Held-out preference accuracy of the base", PERCENT, Better.higher,
        ("held_out", "base", ACCURACY),
    ),
)  # fmt: skip
BY_KEY = {metric.key: metric for metric in METRICS}
