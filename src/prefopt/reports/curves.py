"""Learning curves from the lines of metrics.jsonl."""

import math
from dataclasses import dataclass
from typing import Any

from prefopt.reports.charts.drawing import is_drawable

MAX_POINTS = 100
"""A curve with more points is drawn as means over equally many neighbouring log lines."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: `label` stands at its end, `style` is the CSS class of its colour."""

    label: str
    steps: list[float]
    values: list[float]
    style: str
    is_held_out: bool
    num_averaged: int
    """Number of log lines averaged into one point."""

    @property
    def name(self) -> str:
        """`train`, or `train chosen` in a panel of several metrics."""
        return " ".join(dict.fromkeys(("held-out" if self.is_held_out else "train", self.label)))


@dataclass(frozen=True)
class Panel:
    """A small chart of `metrics`, each with the CSS class of its colour, and a dashed line at `baseline`."""

    title: str
    hint: str
    metrics: tuple[tuple[str, str], ...]
    baseline: float | None = None
    is_share: bool = False


SINGLE = "tuned"
PANELS = (
    Panel("Loss", "lower is better", (("loss", SINGLE),)),
    Panel(
        "Reward accuracy",
        "share of pairs; dashed line: chance",
        (("rewards/accuracies", SINGLE),),
        baseline=0.5,
        is_share=True,
    ),
    Panel("Reward margin", "chosen - rejected", (("rewards/margins", SINGLE),), baseline=0.0),
    Panel(
        "Rewards of chosen and rejected",
        "beta times the change of log-prob",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        baseline=0.0,
    ),
    Panel(
        "Log-probs of chosen and rejected",
        "sum over the completion",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
    ),
    Panel(
        "Token accuracy",
        "share of next tokens guessed right",
        (("mean_token_accuracy", SINGLE),),
        is_share=True,
    ),
)


def series_of(panel: Panel, metrics: list[dict[str, Any]]) -> list[Series]:
    """Returns the panel's train and held-out lines that have a finite point to draw, train first."""
    found = [
        _series(metrics, key, style, is_held_out=is_held_out, is_only_metric=len(panel.metrics) == 1)
        for is_held_out in (False, True)
        for key, style in panel.metrics
    ]
    return [series for series in found if series.steps]


def num_not_finite(panel: Panel, metrics: list[dict[str, Any]]) -> int:
    """Counts the panel's logged values that are NaN or infinite, and therefore not drawn."""
    return sum(1 for line in metrics for key, _ in panel.metrics if key in line and not _is_finite(line[key]))


def _series(metrics: list[dict[str, Any]], key: str, style: str, *, is_held_out: bool, is_only_metric: bool) -> Series:
    split = "held_out" if is_held_out else "train"
    points = [
        (float(line["step"]), float(line[key]))
        for line in metrics
        if line.get("split", "train") == split and key in line and _is_finite(line[key])
    ]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    means = [_mean(points[start : start + size]) for start in range(0, len(points), size)]
    label = split.replace("_", "-") if is_only_metric else key.split("/")[-1]
    style = "base" if is_only_metric and not is_held_out else style
    return Series(label, [x for x, _ in means], [y for _, y in means], style, is_held_out, size)


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and is_drawable(value)
