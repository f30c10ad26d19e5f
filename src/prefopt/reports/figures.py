"""Which charts a report gets: from the report, the metrics and the pairs to titled SVGs."""

import math
from dataclasses import dataclass
from typing import Any

from prefopt.evaluation.metrics import (
    ACCURACY,
    BASE,
    LONGER_WINS,
    LOSS,
    NUMBER,
    PERCENT,
    SHORTER_WINS,
    TUNED,
    Unit,
)
from prefopt.evaluation.report import HeldOut
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.curves import PANELS, Panel, num_not_finite, series_of
from prefopt.reports.numbers import cell, count, interval, is_measured
from prefopt.reports.plots import NARROW, WIDE, IntervalRow, bin_edges, curve_chart, histogram, interval_chart

CHANCE = 0.5
BASELINES = {LONGER_WINS: "always the longer answer", SHORTER_WINS: "always the shorter answer"}


@dataclass(frozen=True)
class FigureBlock:
    """A chart ready for the page; `svg` is trusted markup made by `plots`."""

    title: str
    caption: str
    svg: str
    colours: tuple[str, ...] = ()
    """Names of the groups, each also the CSS variable of its colour; empty where the chart says it itself."""


def result_figures(held_out: HeldOut, pairs: list[dict[str, Any]]) -> list[FigureBlock]:
    """The headline chart and the histogram of average margins, where there is something to draw."""
    return [figure for figure in (_headline_figure(held_out), _margin_figure(pairs)) if figure]


def training_figures(metrics: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> list[FigureBlock]:
    """Learning curves, then the reward margins that they led to."""
    curves = [_curve_figure(panel, metrics) for panel in PANELS]
    return [figure for figure in (*curves, _reward_figure(pairs)) if figure]


def curve_note(metrics: list[dict[str, Any]]) -> str:
    """How to tell the curves apart, and how many log lines stand behind one of their points."""
    lines = [line for panel in PANELS for line in series_of(panel, metrics)]
    averaged = max((line.num_averaged for line in lines), default=1)
    notes = ["Thin line: training. Thick line: held-out."] if any(line.is_held_out for line in lines) else []
    notes += [f"A point is the mean over up to {averaged} log lines."] if averaged > 1 else []
    return " ".join(notes)


def _headline_figure(held_out: HeldOut) -> FigureBlock | None:
    if is_measured(held_out.model(TUNED).get(ACCURACY)):
        return _interval_figure(
            _model_rows(held_out, ACCURACY, PERCENT) + _baseline_rows(held_out),
            "Preference accuracy on held-out pairs",
            "Share of pairs whose chosen answer the model prefers. Bars: 95 % intervals.",
            unit=PERCENT,
            chance=CHANCE,
        )
    rows = _model_rows(held_out, LOSS, NUMBER)
    caption = "Loss per token on the held-out data, lower is better. Bars: 95 % intervals."
    return _interval_figure(rows, "Held-out loss", caption, unit=NUMBER, chance=None) if rows else None


def _interval_figure(
    rows: list[IntervalRow], title: str, caption: str, *, unit: Unit, chance: float | None
) -> FigureBlock:
    description = f"{title}: " + "; ".join(f"{row.label} {row.text}" for row in rows)
    return FigureBlock(title, caption, interval_chart(rows, unit=unit, chance=chance, description=description))


def _model_rows(held_out: HeldOut, key: str, unit: Unit) -> list[IntervalRow]:
    estimates = {model: held_out.model(model).get(key) for model in (TUNED, BASE)}
    return [
        _interval_row(model.capitalize(), estimate, unit, colour=model)
        for model, estimate in estimates.items()
        if estimate is not None and is_measured(estimate)
    ]


def _baseline_rows(held_out: HeldOut) -> list[IntervalRow]:
    estimates = {label: (held_out.baselines or {}).get(key) for key, label in BASELINES.items()}
    known = {
        label: estimate for label, estimate in estimates.items() if estimate is not None and is_measured(estimate)
    }
    best = sorted(known, key=lambda label: -known[label].value)[:1]
    return [
        _interval_row(label.capitalize(), known[label], PERCENT, colour="muted", is_baseline=True) for label in best
    ]


def _interval_row(
    label: str, estimate: Estimate, unit: Unit, *, colour: str, is_baseline: bool = False
) -> IntervalRow:
    shown = cell(estimate, unit)
    text = f"{shown.value}  ({shown.interval})" if shown.interval else shown.value
    return IntervalRow(label, estimate.value, interval(estimate), text, colour, is_baseline)


def _margin_figure(pairs: list[dict[str, Any]]) -> FigureBlock | None:
    groups = {"base": _finite(pairs, "base_margin"), "tuned": _finite(pairs, "tuned_margin")}
    groups = {label: values for label, values in groups.items() if values}
    if not groups:
        return None
    svg = histogram(
        groups,
        {"base": "base", "tuned": "tuned"},
        name="margins",
        x_label="average log-prob, chosen - rejected (nats per token)",
        description="Histogram of margins per held-out pair, base and tuned. " + _sides(groups),
        width=WIDE,
    )
    caption = f"Right of zero the model prefers the chosen answer. {_sides(groups)}{_outliers(groups)}"
    return FigureBlock("Margin per held-out pair", caption, svg, tuple(groups))


def _reward_figure(pairs: list[dict[str, Any]]) -> FigureBlock | None:
    values = _finite(pairs, "reward_margin")
    if not values:
        return None
    svg = histogram(
        {"tuned": values},
        {"tuned": "tuned"},
        name="reward-margins",
        x_label="reward, chosen - rejected",
        description="Histogram of reward margins per held-out pair. " + _sides({"tuned": values}),
        width=NARROW,
    )
    return FigureBlock("Reward margin per held-out pair", f"After training.{_outliers({'tuned': values})}", svg)


def _sides(groups: dict[str, list[float]]) -> str:
    parts = [
        f"{label}: {count(sum(value > 0 for value in values))} of {count(len(values))} pairs"
        for label, values in groups.items()
    ]
    return f"Above zero, {', '.join(parts)}."


def _outliers(groups: dict[str, list[float]]) -> str:
    values = [value for group in groups.values() for value in group]
    edges = bin_edges(values)
    beyond = sum(not edges[0] <= value <= edges[-1] for value in values)
    return f" The outer bars include {count(beyond)} from beyond the axis." if beyond else ""


def _finite(pairs: list[dict[str, Any]], key: str) -> list[float]:
    values = (pair.get(key) for pair in pairs)
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _curve_figure(panel: Panel, metrics: list[dict[str, Any]]) -> FigureBlock | None:
    lines = series_of(panel, metrics)
    if not lines:
        return None
    ends = "; ".join(
        f"{'held-out' if line.is_held_out else 'train'} {line.label} {line.values[0]:.3g} to {line.values[-1]:.3g}"
        for line in lines
    )
    notes = [panel.hint]
    if missing := num_not_finite(panel, metrics):
        notes.append(f"{count(missing)} values that are not finite are not drawn")
    return FigureBlock(panel.title, "; ".join(notes), curve_chart(panel, lines, description=f"{panel.title}: {ends}"))
