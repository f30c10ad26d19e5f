"""Numbers of a report that are none: the finding on them."""

from math import isfinite
from typing import Any

from prefopt.evaluation.decision import Finding
from prefopt.evaluation.metrics import (
    BASE,
    DRIFT,
    HELD_OUT,
    LIKELIHOOD,
    METRICS,
    REWARD_ACCURACY,
    REWARD_MARGIN,
    TUNED,
)
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate

WHOLE_BASE = "A base that gives numbers: mend or replace its weights, and measure again with prefopt evaluate."

OF_BOTH = (REWARD_ACCURACY, REWARD_MARGIN)
"""Metrics of the tuned model that are computed from the base's log-probs too."""


def judge_numbers(report: Report) -> list[Finding]:
    """Names every number that is not finite: whatever the others say, such a model or measurement is broken.

    Where the tuned model's own numbers are finite and the base's are not, the base is broken: so are all comparisons
    with it, which say nothing of the tuned model.
    """
    blocks: dict[str, Any] = {HELD_OUT: report.held_out.models, DRIFT: report.drift, LIKELIHOOD: report.likelihood}
    found = [(block, *each) for block, part in blocks.items() for each in _find_broken(part or {})]
    broken = [f"{_name(block, metric)}{f' ({model})' if model else ''}" for block, metric, model in found]
    gaps = {key: gap.get("gap") for key, gap in report.overfitting.items()}
    broken += [f"gap in {_name(HELD_OUT, key)}" for key, gap in gaps.items() if _is_broken(gap)]
    broken += [f"change of {_name(HELD_OUT, key)}" for key, gain in report.held_out.gain.items() if _is_broken(gain)]
    if not broken:
        return []
    named = ", ".join(dict.fromkeys(broken))
    models = {model for _, metric, model in found if metric not in OF_BOTH}
    if BASE in models and TUNED not in models:
        text = f"The base gives numbers that are not finite, so nothing is measured against it: {named}."
        evidence = "the base's log-probs are NaN or infinite, or overflow; the tuned model's own numbers are finite"
        return [Finding("warning", text, evidence, is_severe=True, remedy=WHOLE_BASE)]
    text = f"Not a finite number: {named}."
    evidence = "the model's log-probs are NaN or infinite, or overflow"
    return [Finding("bad", text, evidence)]


def _name(block: str, key: str) -> str:
    """The name of a metric in a block of the report; its key if it has none."""
    return next((metric.name for metric in METRICS if metric.path[:1] == (block,) and metric.report_key == key), key)


def _find_broken(block: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (metric, model) of each estimate that is not finite, of a block by model, by metric, or by both."""
    found = []
    for outer, entry in block.items():
        if isinstance(entry, Estimate):
            found += [(outer, "")] if _is_broken(entry) else []
        elif outer in (BASE, TUNED) or not any(key in (BASE, TUNED) for key in entry):
            found += [(metric, outer) for metric, estimate in entry.items() if _is_broken(estimate)]
        else:
            found += [(outer, model) for model, estimate in entry.items() if _is_broken(estimate)]
    return found


def _is_broken(value: object) -> bool:
    return (
        not isfinite(value.value) if isinstance(value, Estimate) else isinstance(value, float) and not isfinite(value)
    )
