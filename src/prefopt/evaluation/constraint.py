"""Limits that a run has to keep whatever else it reaches, such as the drift from its base: `sweep.constraint`."""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, TypeGuard

from prefopt.config.aliases import nearest
from prefopt.evaluation.metrics import COMPARED, Better, Metric
from prefopt.process.errors import UserError, shorten

SETTING = "sweep.constraint"


def check_constraint(wanted: Mapping[str, Any]) -> dict[str, float]:
    """Returns the limits of a sweep: key of a metric -> its largest allowed value. A limit of null is none.

    Raises:
        UserError: A metric is unknown, is not in reports, or is better the higher it is; or a limit is no number.
    """
    allowed = {metric.key for metric in COMPARED if is_limitable(metric)}
    for key, limit in wanted.items():
        if key not in allowed:
            near = nearest(key, allowed)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{SETTING}.{key}: no metric of reports that is better the lower it is.{hint} "
                f"Allowed: {', '.join(sorted(allowed))}."
            )
        if limit is not None and (not _is_number(limit) or not limit >= 0):
            raise UserError(f"{SETTING}.{key}: must be a number >= 0, or null for none, found {shorten(repr(limit))}.")
    return {key: float(limit) for key, limit in wanted.items() if limit is not None}


def is_limitable(metric: Metric) -> bool:
    """Whether a largest value makes sense for a metric of reports."""
    return bool(metric.path) and metric.better in (Better.lower, Better.near_zero)


def values_of(report: Mapping[str, Any], constraint: Mapping[str, float]) -> dict[str, float]:
    """Returns the distances from zero of the limited metrics that a report has; infinite for what is not finite."""
    found = {metric.key: _at(report, metric.path) for metric in COMPARED if metric.key in constraint}
    return {key: abs(value) if isfinite(value) else inf for key, value in found.items() if value is not None}


def _at(report: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        report = report.get(key) if isinstance(report, Mapping) else None
    if isinstance(report, Mapping) and "value" in report:  # null stands for what was not finite
        report = report["value"] if _is_number(report["value"]) else inf
    return float(report) if _is_number(report) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
