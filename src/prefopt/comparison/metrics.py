"""Which numbers of a run are compared: where they stand, how they are written, and what is better."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from prefopt.comparison.records import Measure
from prefopt.errors import UserError
from prefopt.report.numbers import CHANGE, NUMBER, PERCENT, POINTS, RATIO, Cell, Unit, cell, duration
from prefopt.run_files import LARGEST
from prefopt.tracking.phases import outside_training

SPLIT, HELD_OUT = "split", "held_out"
SFT = "sft"
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
SHOWN = (ACCURACY, LOSS, "mean_margin", KL, "length_change", "chosen_change", "train_time_s", OUTSIDE, "pairs_per_s")
"""The columns of the table, where any run has them."""


def find_metric(key: str) -> Metric:
    """The metric of this name.

    Raises:
        UserError: There is none, with the nearest one.
    """
    if key not in BY_KEY:
        near = difflib.get_close_matches(key, BY_KEY, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"--rank-by {key}: no such metric. {hint}Metrics: {', '.join(BY_KEY)}.")
    return BY_KEY[key]


def from_report(report: Mapping[str, Any]) -> dict[str, Measure]:
    """The metrics that report.json holds; what it does not hold, or not as a finite number, is absent."""
    found = {metric.key: _measure(_at(report, metric.path)) for metric in METRICS if metric.path}
    found[OUTSIDE] = _outside(report.get("phases"))
    base, tuned = (_measure(_at(report, ("drift", "response_length", model))) for model in ("base", "tuned"))
    return _with_length({key: value for key, value in found.items() if value is not None}, base, tuned)


def from_summary(summary: Mapping[str, Any]) -> dict[str, Measure]:
    """The metrics of W&B's summary, which has values without intervals."""
    found = {metric.key: _measure(summary.get("/".join(metric.path))) for metric in METRICS if metric.path}
    found[OUTSIDE] = _measure(summary.get(OUTSIDE))
    base, tuned = (_measure(summary.get(f"drift/response_length/{model}")) for model in ("base", "tuned"))
    return _with_length({key: value for key, value in found.items() if value is not None}, base, tuned)


def from_line(line: Mapping[str, Any], algorithm: str | None) -> dict[str, Measure]:
    """The metrics of a held-out line of metrics.jsonl. A preference loss is left out: it is no loss per token."""
    logged = {metric.key: _measure(line.get(metric.logged)) for metric in METRICS if metric.logged is not None}
    return {key: value for key, value in logged.items() if value is not None and (key != LOSS or algorithm == SFT)}


def speed_of(line: Mapping[str, Any]) -> dict[str, Measure]:
    """Time and throughput by the last line of metrics.jsonl."""
    seconds = _measure(line.get("training_s", line.get("time_s")))
    if seconds is None:
        return {}
    rates = {f"{name}_per_s": _measure(line.get(name)) for name in ("pairs", "tokens")}
    per_s = {key: Measure(seen.value / max(seconds.value, 1e-9)) for key, seen in rates.items() if seen is not None}
    return {"train_time_s": seconds, **per_s}


def as_text(metric: Metric, measure: Measure) -> Cell:
    """Value with unit, interval and n, ready to print."""
    if metric.key in ("train_time_s", OUTSIDE):
        return Cell(duration(measure.value))
    return cell({"value": measure.value, "ci95": (measure.low, measure.high), "n": measure.n}, metric.unit)


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON or YAML file is a number that can be drawn and averaged."""
    kind = type(value)
    return (kind is float and math.isfinite(value)) or (kind is int and abs(value) < LARGEST)


def _with_length(found: dict[str, Measure], base: Measure | None, tuned: Measure | None) -> dict[str, Measure]:
    if base is not None and tuned is not None and base.value > 0:
        found["length_change"] = Measure(tuned.value / base.value - 1, n=tuned.n)
    return found


def _outside(seconds: Any) -> Measure | None:
    if not isinstance(seconds, Mapping) or not seconds or not all(map(is_finite, seconds.values())):
        return None
    return Measure(outside_training(seconds))


def _at(report: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        report = report.get(key) if isinstance(report, Mapping) else None
    return report


def _measure(entry: Any) -> Measure | None:
    if is_finite(entry):
        return Measure(float(entry))
    if not isinstance(entry, Mapping) or not is_finite(entry.get("value")):
        return None
    interval = entry.get("ci95")
    is_whole = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(is_finite, interval))
    low, high = (float(bound) for bound in interval) if is_whole and interval else (None, None)
    num = entry.get("n")
    return Measure(float(entry["value"]), low, high, num if isinstance(num, int) else None)
