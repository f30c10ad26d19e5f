"""compare.html: one self-contained page with the table, the curves and the charts of a comparison."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from prefopt.comparison.curve_chart import AXES, Line, curve_chart
from prefopt.comparison.curves import CURVES, CurveKind
from prefopt.comparison.drawing import NUM_BEST, look, robust_range
from prefopt.comparison.groups import Spread
from prefopt.comparison.parallel import parallel_chart
from prefopt.comparison.ranking import Comparison
from prefopt.comparison.records import RunRecord
from prefopt.comparison.settings import shown
from prefopt.comparison.trade_off import trade_off_chart
from prefopt.comparison.wording import (
    OTHER_DATA,
    clean,
    decision_text,
    describe_noise,
    difference_text,
    label_of,
    last_held_out,
    name_of,
    rank_text,
    seeds_text,
    speed_text,
    spread_cell,
    state_text,
    summary_text,
)
from prefopt.evaluation.metrics import ACCURACY, BY_KEY, LOSS
from prefopt.reports.numbers import moment
from prefopt.storage.files import write_text

BAR_WIDTH, BAR_HEIGHT = 110, 16
MIN_OPACITY, MAX_OPACITY = 0.08, 0.4
"""Of lines behind the best ones: the more there are, the fainter each."""
DECISION_LEVELS = {"ship": "good", "do not ship": "bad", "undecided": "warning"}
STATE_LEVELS = {"running": "info", "failed": "bad", "diverged": "bad", "preempted": "warning"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title; `svg` is markup made here, in which every word of a run is escaped."""

    title: str
    caption: str
    svg: str


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page, completely or not at all."""
    write_text(path, render_page(comparison))


def render_page(comparison: Comparison) -> str:
    """The page as HTML. Nothing in it is loaded from elsewhere, and without scripts it shows all but the switches."""
    parallel = parallel_chart(comparison)
    return (
        _environment()
        .get_template("compare.html.j2")
        .render(
            title=clean(comparison.title),
            summary=summary_text(comparison),
            warnings=[clean(warning) for warning in comparison.warnings],
            noise=describe_noise(comparison),
            links=[clean(link) for link in comparison.links],
            metric=comparison.metric,
            has_seeds=any(row.group.num_planned > 1 for row in comparison.rows),
            columns=comparison.columns,
            settings=[(clean(key), clean(head)) for key, head in comparison.settings.items()],
            rows=_table_rows(comparison),
            best=[(look(i), i, label_of(row, comparison)) for i, row in enumerate(comparison.rows[:NUM_BEST])],
            trade_off=_trade_off(comparison),
            parallel=parallel,
            axes=AXES,
            faintness=f"{max(MIN_OPACITY, min(MAX_OPACITY, 20 / max(len(comparison.runs), 1))):.3f}",
            curves=curve_figures(comparison),
            measured_once=measured_once(comparison),
            made=moment(datetime.now(UTC).isoformat()),
            unranked=[
                _unranked(run, comparison, len(comparison.rows) + i) for i, run in enumerate(comparison.unranked)
            ],
            names=_as_script_data(_names(comparison)),
        )
    )


def curve_figures(comparison: Comparison) -> list[Figure]:
    """The learning curves of which any run has two points."""
    charts = _lines_by_chart(comparison)
    return [
        Figure(title, _caption(kind, lines), curve_chart(kind, lines))
        for title, kind, lines in charts
        if has_curve(lines)
    ]


def measured_once(comparison: Comparison) -> list[str]:
    """Titles of what every run has measured once at most, so that there is no curve."""
    return [title for title, _, lines in _lines_by_chart(comparison) if not has_curve(lines)]


def has_curve(lines: Sequence[Line]) -> bool:
    """Whether there is more to draw than points."""
    return any(len(line.curve.values) > 1 for line in lines)


def _lines_by_chart(comparison: Comparison) -> Iterator[tuple[str, CurveKind, list[Line]]]:
    """Title, kind and lines of each chart; a loss gets one per algorithm, for two cannot be compared."""
    numbered = [(i, run) for i, row in enumerate(comparison.rows) for run in row.group.members]
    numbered += [(len(comparison.rows) + i, run) for i, run in enumerate(comparison.unranked)]
    algorithms = list(dict.fromkeys(run.algorithm for _, run in numbered if run.curves))
    for kind in CURVES:
        for algorithm in algorithms if kind.of_algorithm else [None]:
            lines = [
                Line(index, run.curves[kind.key])
                for index, run in numbered
                if kind.key in run.curves and algorithm in (None, run.algorithm)
            ]
            of = f" ({algorithm.upper()})" if algorithm and len(algorithms) > 1 else ""
            if lines:
                yield kind.title + of, kind, lines


def _caption(kind: CurveKind, lines: Sequence[Line]) -> str:
    hints = [kind.hint]
    if any(line.curve.trend for line in lines if line.row < NUM_BEST):
        hints.append("in bold means over neighbouring points")
    thinned = [line.curve for line in lines if line.curve.num_logged > len(line.curve.values)]
    if thinned:
        logged, kept = max((curve.num_logged, len(curve.values)) for curve in thinned)
        hints.append(f"of up to {logged:,} logged points {kept} are drawn, highs and lows among them")
    return "; ".join(hints)


def _trade_off(comparison: Comparison) -> Figure | None:
    measured = [key for key in (ACCURACY, LOSS) if any(row.group.spread(key) for row in comparison.rows)]
    for metric in [BY_KEY[key] for key in measured]:
        chart = trade_off_chart(comparison.rows, metric)
        if chart is not None:
            front = "Dashed: the front, on which no configuration is better at less KL."
            bars = "Bars: 95 % intervals, or ± 1 sd over seeds."
            beyond = f" Far-off points stand at the edge: {chart.num_beyond}." if chart.num_beyond else ""
            return Figure(f"{metric.title} against KL", f"{front} {bars}{beyond}", chart.svg)
    return None


def _table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    spreads = [row.group.spread(comparison.metric) for row in comparison.rows]
    ends = [end for spread in spreads if spread is not None for end in _ends(spread)]
    span = robust_range(ends) if ends else (0.0, 1.0)
    return [
        {
            "look": look(index),
            "index": index,
            "rank": rank_text(row),
            "name": name_of(row),
            "seeds": seeds_text(row),
            "runs": [clean(run.name) for run in row.group.members] if len(row.group.members) > 1 else [],
            "settings": [clean(shown(row.group.settings, key)) for key in comparison.settings],
            "cells": [spread_cell(metric, row.group) for metric in comparison.columns],
            "bar": _bar(spread, span),
            "decision": decision_text(row),
            "decision_level": DECISION_LEVELS.get(decision_text(row), ""),
            "verdict": row.verdict + (OTHER_DATA if row.has_other_data else ""),
            "difference": difference_text(row, comparison.metric),
            "is_noise": row.is_first or (row.difference is not None and row.difference.is_noise),
        }
        for index, (row, spread) in enumerate(zip(comparison.rows, spreads, strict=True))
    ]


def _ends(spread: Spread) -> tuple[float, float]:
    if spread.single is not None and spread.single.low is not None and spread.single.high is not None:
        return spread.single.low, spread.single.high
    sd = spread.sd or 0.0
    return min(spread.mean - sd, *spread.values), max(spread.mean + sd, *spread.values)


def _bar(spread: Spread | None, span: tuple[float, float]) -> str:
    """The value with its interval (over seeds: ± 1 sd, and each seed) on the scale of the whole column."""
    if spread is None:
        return ""

    def x(value: float) -> str:
        share = (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])
        return f"{4 + share * (BAR_WIDTH - 8):.1f}"

    middle = BAR_HEIGHT / 2
    low, high = _ends(spread) if spread.sd is None else (spread.mean - spread.sd, spread.mean + spread.sd)
    seeds = "".join(
        f'<circle class="seed" cx="{x(value)}" cy="{middle:g}" r="2"/>'
        for value in spread.values[1:] and spread.values
    )
    return (
        f'<svg class="bar" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{middle:g}" y2="{middle:g}"/>{seeds}'
        f'<circle cx="{x(spread.mean)}" cy="{middle:g}" r="4"/></svg>'
    )


def _unranked(run: RunRecord, comparison: Comparison, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": clean(run.name),
        "settings": [clean(shown(run.settings, key)) for key in comparison.settings],
        "state": state_text(run),
        "level": STATE_LEVELS.get(run.state, ""),
        "step": run.step,
        "held_out": last_held_out(run),
        "time": speed_text(run, "train_time_s"),
        "pairs_per_s": speed_text(run, "pairs_per_s"),
        "message": clean(run.message),
    }


def _names(comparison: Comparison) -> list[str]:
    """What the pointer is told over a line: the rank and what sets it apart."""
    ranked = [f"#{rank_text(row)}  {label_of(row, comparison)}" for row in comparison.rows]
    return ranked + [f"{clean(run.name)} ({state_text(run)})" for run in comparison.unranked]


def _as_script_data(value: Any) -> str:
    """JSON in which nothing ends the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader("prefopt.comparison"), PackageLoader("prefopt.reports")]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
