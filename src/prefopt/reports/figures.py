"""The charts of a report: makes titled SVGs from the report, the logged metrics and the pairs."""

from typing import Any, TypeGuard

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
from prefopt.reports.charts.drawing import Box, Figure, is_drawable, with_air
from prefopt.reports.charts.histogram import bin_edges, histogram
from prefopt.reports.charts.intervals import WIDTH, IntervalRow, interval_chart
from prefopt.reports.charts.lines import Label, Line, line_chart
from prefopt.reports.curves import PANELS, Panel, Series, num_not_finite, series_of
from prefopt.reports.numbers import cell, count, interval, number

NARROW = 340
"""Width in pixels of a chart; three fit in a row."""
CURVE_BOX = Box(NARROW, 200, left=44, right=62, top=8, bottom=40)
MAX_DOTS = 20
"""A held-out curve with at most this many points has a dot on each."""
CHANCE = 0.5
BASELINES = {LONGER_WINS: "always the longer answer", SHORTER_WINS: "always the shorter answer"}


def result_figures(held_out: HeldOut, pairs: list[dict[str, Any]]) -> list[Figure]:
    """Draws the headline chart and the histogram of average margins; a chart without data is left out."""
    return [figure for figure in (_headline_figure(held_out), _margin_figure(pairs)) if figure]


def training_figures(metrics: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> list[Figure]:
    """Draws the learning curves, then the histogram of reward margins after training."""
    curves = [_curve_figure(panel, metrics) for panel in PANELS]
    return [figure for figure in (*curves, _reward_figure(pairs)) if figure]


def curve_note(metrics: list[dict[str, Any]]) -> str:
    """Explains the curves: line styles, log lines per point, and which panels have too few points for a curve."""
    lines = [line for panel in PANELS for line in series_of(panel, metrics)]
    averaged = max((line.num_averaged for line in lines), default=1)
    notes = ["Thin line: training. Thick line: held-out."] if any(line.is_held_out for line in lines) else []
    notes += [f"A point is the mean over up to {averaged} log lines."] if averaged > 1 else []
    bare = [_without_curve(panel, metrics) for panel in PANELS if not _has_curve(series_of(panel, metrics))]
    bare = [words for words in bare if words]
    notes += [f"Fewer than two points, so there is no curve: {'; '.join(bare)}."] if bare else []
    return " ".join(notes)


def _headline_figure(held_out: HeldOut) -> Figure | None:
    if _is_drawn(held_out.model(TUNED).get(ACCURACY)):
        return _interval_figure(
            _model_rows(held_out, ACCURACY, PERCENT) + _baseline_rows(held_out),
            "Preference accuracy on held-out pairs",
            "Share of pairs whose chosen answer the model prefers. Bars: 95 % intervals.",
            is_share=True,
            chance=CHANCE,
        )
    rows = _model_rows(held_out, LOSS, NUMBER)
    caption = "Loss per token on the held-out data, lower is better. Bars: 95 % intervals."
    return _interval_figure(rows, "Held-out loss", caption, is_share=False, chance=None) if rows else None


def _interval_figure(
    rows: list[IntervalRow], title: str, caption: str, *, is_share: bool, chance: float | None
) -> Figure:
    description = f"{title}: " + "; ".join(f"{row.label} {row.text}" for row in rows)
    return Figure(title, caption, interval_chart(rows, is_share=is_share, chance=chance, description=description))


def _model_rows(held_out: HeldOut, key: str, unit: Unit) -> list[IntervalRow]:
    estimates = {model: held_out.model(model).get(key) for model in (TUNED, BASE)}
    return [
        _interval_row(model.capitalize(), estimate, unit, style=model)
        for model, estimate in estimates.items()
        if _is_drawn(estimate)
    ]


def _baseline_rows(held_out: HeldOut) -> list[IntervalRow]:
    estimates = {label: (held_out.baselines or {}).get(key) for key, label in BASELINES.items()}
    known = {label: estimate for label, estimate in estimates.items() if _is_drawn(estimate)}
    best = sorted(known, key=lambda label: -known[label].value)[:1]
    return [
        _interval_row(label.capitalize(), known[label], PERCENT, style="muted", is_baseline=True) for label in best
    ]


def _interval_row(label: str, estimate: Estimate, unit: Unit, *, style: str, is_baseline: bool = False) -> IntervalRow:
    shown = cell(estimate, unit)
    text = f"{shown.value}  ({shown.interval})" if shown.interval else shown.value
    bounds = interval(estimate)
    drawn = bounds if bounds is not None and all(map(is_drawable, bounds)) else None
    return IntervalRow(label, estimate.value, drawn, text, style, is_baseline)


def _is_drawn(estimate: Estimate | None) -> TypeGuard[Estimate]:
    return estimate is not None and is_drawable(estimate.value)


def _margin_figure(pairs: list[dict[str, Any]]) -> Figure | None:
    groups = {"base": _finite(pairs, "base_margin"), "tuned": _finite(pairs, "tuned_margin")}
    groups = {label: values for label, values in groups.items() if values}
    if not groups:
        return None
    sides = _sides(groups, len(pairs))
    svg = histogram(
        groups,
        x_label="average log-prob, chosen - rejected (nats per token)",
        description="Histogram of margins per held-out pair, base and tuned. " + sides,
        width=WIDTH,
    )
    caption = f"Right of zero the model prefers the chosen answer. {sides}{_outliers(groups)}"
    return Figure("Margin per held-out pair", caption, svg, tuple(groups))


def _reward_figure(pairs: list[dict[str, Any]]) -> Figure | None:
    values = _finite(pairs, "reward_margin")
    if not values:
        return None
    svg = histogram(
        {"tuned": values},
        x_label="reward, chosen - rejected",
        description="Histogram of reward margins per held-out pair. " + _sides({"tuned": values}, len(pairs)),
        width=NARROW,
    )
    return Figure("Reward margin per held-out pair", f"After training.{_outliers({'tuned': values})}", svg)


def _sides(groups: dict[str, list[float]], num_pairs: int) -> str:
    """Says how many values of each model are above zero; not of one that lacks some because they are not finite."""
    parts = [
        f"{label}: {count(sum(value > 0 for value in values))} of {count(num_pairs)} pairs"
        if len(values) == num_pairs
        else f"{label}: not known, {count(num_pairs - len(values))} of {count(num_pairs)} pairs are not finite"
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
    return [float(value) for value in values if value is not None and is_drawable(value)]


def _curve_figure(panel: Panel, metrics: list[dict[str, Any]]) -> Figure | None:
    lines = series_of(panel, metrics)
    if not _has_curve(lines):
        return None
    ends = "; ".join(f"{line.name} {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in lines)
    notes = [note for note in (panel.hint, _not_drawn(panel, metrics)) if note]
    return Figure(panel.title, "; ".join(notes), _curve_chart(panel, lines, description=f"{panel.title}: {ends}"))


def _has_curve(lines: list[Series]) -> bool:
    """Whether any line has at least two points."""
    return any(len(line.values) > 1 for line in lines)


def _without_curve(panel: Panel, metrics: list[dict[str, Any]]) -> str:
    """Title and logged values of a panel that has no curve; empty if nothing was logged."""
    points = [f"{line.name} {number(line.values[0])}" for line in series_of(panel, metrics)]
    said = [note for note in (*points, _not_drawn(panel, metrics)) if note]
    return f"{panel.title} ({', '.join(said)})" if said else ""


def _not_drawn(panel: Panel, metrics: list[dict[str, Any]]) -> str:
    missing = num_not_finite(panel, metrics)
    return f"{count(missing)} values that are not finite are not drawn" if missing else ""


def _curve_chart(panel: Panel, lines: list[Series], *, description: str) -> str:
    """Draws training (thin) and held-out (thick) lines over steps, with labels at their ends."""
    values = [value for line in lines for value in line.values]
    values += [] if panel.baseline is None else [panel.baseline]
    y_range = (min(0.45, *values) - 0.02, 1.02) if panel.is_share else with_air(min(values), max(values))
    has_held_out = any(line.is_held_out for line in lines)
    labelled = [line for line in lines if line.is_held_out or len(panel.metrics) == 1 or not has_held_out]
    return line_chart(
        CURVE_BOX,
        [
            Line(
                f"{line.style} {'held_out' if line.is_held_out else 'train'}",
                line.values,
                {"steps": line.steps},
                has_dots=line.is_held_out and len(line.values) <= MAX_DOTS,
            )
            for line in lines
        ],
        [Label(line.label, line.values[-1], line.style) for line in labelled],
        axes={"steps": "step"},
        y_range=y_range,
        is_share=panel.is_share,
        baseline=panel.baseline,
        description=description,
    )
