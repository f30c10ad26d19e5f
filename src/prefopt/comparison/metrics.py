"""Reads the metrics that are compared from a run's report, log or W&B summary, and formats them."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from prefopt.comparison.records import Measure
from prefopt.config.algorithms import rows_of
from prefopt.evaluation.metrics import (
    ACCURACY,
    BASE,
    BY_KEY,
    CHOSEN_CHANGE,
    COMPARED,
    DRIFT,
    KL,
    LENGTH,
    LENGTH_CHANGE,
    LOSS,
    MARGIN,
    OUTSIDE,
    PAIRS_PER_S,
    TRAIN_TIME,
    TUNED,
    WIN_RATE,
    Metric,
)
from prefopt.evaluation.statistics import Estimate
from prefopt.process.errors import UserError
from prefopt.process.phases import outside_training
from prefopt.reports.charts.drawing import is_drawable
from prefopt.reports.numbers import Cell, cell, duration
from prefopt.runs.files import LARGEST

SPLIT, HELD_OUT = "split", "held_out"
SHOWN = (WIN_RATE, ACCURACY, LOSS, MARGIN, KL, LENGTH_CHANGE, CHOSEN_CHANGE, TRAIN_TIME, OUTSIDE, PAIRS_PER_S)
"""The metrics that are columns of the table, if any run has them."""


def find_metric(key: str) -> Metric:
    """Returns the metric with this key.

    Raises:
        UserError: There is none; the message names the nearest one.
    """
    if key not in BY_KEY:
        near = difflib.get_close_matches(key, BY_KEY, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"--rank-by {key}: no such metric. {hint}Metrics: {', '.join(BY_KEY)}.")
    return BY_KEY[key]


def from_report(report: Mapping[str, object]) -> dict[str, Measure]:
    """Returns the metrics in report.json; a metric that is missing or not finite is left out."""
    found = {metric.key: _measure(_at(report, metric.path)) for metric in COMPARED if metric.path}
    found[OUTSIDE] = _outside(report.get("phases"))
    base, tuned = (_measure(_at(report, (DRIFT, LENGTH, model))) for model in (BASE, TUNED))
    return _with_length({key: value for key, value in found.items() if value is not None}, base, tuned)


def not_finite_in(report: Mapping[str, object]) -> frozenset[str]:
    """Returns the keys of the metrics that report.json holds as measured on examples, but as no finite number."""
    entries = {metric.key: _at(report, metric.path) for metric in COMPARED if metric.path}
    return frozenset(
        key
        for key, entry in entries.items()
        if isinstance(entry, Mapping) and entry.get("n") and entry.get("value", 0) is None
    )


def from_summary(summary: Mapping[str, object]) -> dict[str, Measure]:
    """Returns the metrics in W&B's summary, which has values without intervals."""
    found = {metric.key: _measure(summary.get("/".join(metric.path))) for metric in COMPARED if metric.path}
    found[OUTSIDE] = _measure(summary.get(OUTSIDE))
    base, tuned = (_measure(summary.get(f"{DRIFT}/{LENGTH}/{model}")) for model in (BASE, TUNED))
    return _with_length({key: value for key, value in found.items() if value is not None}, base, tuned)


def from_line(line: Mapping[str, object], algorithm: str | None) -> dict[str, Measure]:
    """Returns the metrics in a held-out line of metrics.jsonl.

    One name can mean different metrics: `loss` of a run on pairs is not a loss per token. A run of unknown algorithm
    is read as a run on pairs.
    """
    known = [m for m in COMPARED if m.logged and (rows_of(algorithm) or "preference") in m.rows]
    found = {metric.key: _measure(line.get(metric.logged or "")) for metric in known}
    return {key: value for key, value in found.items() if value is not None}


def speed_of(line: Mapping[str, object]) -> dict[str, Measure]:
    """Returns training time and throughput from the last line of metrics.jsonl."""
    seconds = _measure(line.get("training_s", line.get("time_s")))
    if seconds is None:
        return {}
    rates = {f"{name}_per_s": _measure(line.get(name)) for name in ("pairs", "tokens")}
    per_s = {key: Measure(seen.value / max(seconds.value, 1e-9)) for key, seen in rates.items() if seen is not None}
    return {TRAIN_TIME: seconds, **per_s}


def as_text(metric: Metric, measure: Measure) -> Cell:
    """Formats a measure with unit, interval and n."""
    if metric.key in (TRAIN_TIME, OUTSIDE):
        return Cell(duration(measure.value))
    low, high = (math.nan if bound is None else bound for bound in (measure.low, measure.high))
    return cell(Estimate(measure.value, low, high, measure.n), metric.unit)


def is_finite(value: Any) -> bool:
    """Whether a value from a JSON or YAML file is a finite number of ordinary size, and no boolean."""
    kind = type(value)
    return (kind is float and is_drawable(value)) or (kind is int and abs(value) < LARGEST)


def _with_length(found: dict[str, Measure], base: Measure | None, tuned: Measure | None) -> dict[str, Measure]:
    if base is not None and tuned is not None and base.value > 0:
        found[LENGTH_CHANGE] = Measure(tuned.value / base.value - 1, n=tuned.n)
    return found


def _outside(seconds: object) -> Measure | None:
    if not isinstance(seconds, Mapping) or not seconds or not all(map(is_finite, seconds.values())):
        return None
    return Measure(outside_training(seconds))


def _at(report: object, path: tuple[str, ...]) -> object:
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
