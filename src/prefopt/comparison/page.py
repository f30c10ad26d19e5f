"""compare.html: one self-contained page with the table, the curves and the charts of a comparison."""

import json
from datetime import UTC, datetime
from pathlib import Path

from prefopt.comparison.colours import NUM_BEST, row_style
from prefopt.comparison.curve_figures import AXES, curve_figures
from prefopt.comparison.groups import Spread
from prefopt.comparison.parallel import parallel_figure
from prefopt.comparison.ranking import Comparison
from prefopt.comparison.records import RunRecord
from prefopt.comparison.settings import shown
from prefopt.comparison.trade_off import trade_off_figure
from prefopt.comparison.wording import (
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
    verdict_text,
)
from prefopt.process.terminal import one_line
from prefopt.reports.charts.drawing import Scale, circle, line, robust_range
from prefopt.reports.numbers import moment
from prefopt.reports.render import environment
from prefopt.storage.files import write_text

BAR_WIDTH, BAR_HEIGHT = 110, 16
MIN_OPACITY, MAX_OPACITY = 0.08, 0.4
"""Opacity of the lines of rows that are not in colour: the more runs, the fainter."""
DECISION_LEVELS = {"ship": "good", "do not ship": "bad", "undecided": "warning"}
STATE_LEVELS = {"running": "info", "failed": "bad", "diverged": "bad", "preempted": "warning"}


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page, completely or not at all."""
    write_text(path, render_page(comparison))


def render_page(comparison: Comparison) -> str:
    """Returns the page as HTML. It loads nothing from elsewhere; without JavaScript only its switches are missing."""
    curves, measured_once = curve_figures(comparison)
    return (
        environment("prefopt.comparison", "prefopt.reports", clean=one_line)
        .get_template("compare.html.j2")
        .render(
            title=comparison.title,
            summary=summary_text(comparison),
            warnings=comparison.warnings,
            noise=describe_noise(comparison),
            links=comparison.links,
            metric=comparison.metric,
            has_seeds=any(row.group.num_planned > 1 for row in comparison.rows),
            columns=comparison.columns,
            settings=list(comparison.settings.items()),
            rows=_table_rows(comparison),
            best=[(row_style(i), i, label_of(row, comparison)) for i, row in enumerate(comparison.rows[:NUM_BEST])],
            outcomes=[figure for figure in (trade_off_figure(comparison), parallel_figure(comparison)) if figure],
            axes=AXES,
            faintness=f"{max(MIN_OPACITY, min(MAX_OPACITY, 20 / max(len(comparison.runs), 1))):.3f}",
            curves=curves,
            measured_once=measured_once,
            made=moment(datetime.now(UTC).isoformat()),
            unranked=[
                _unranked(run, comparison, len(comparison.rows) + i) for i, run in enumerate(comparison.unranked)
            ],
            names=_as_script_data(_names(comparison)),
        )
    )


def _table_rows(comparison: Comparison) -> list[dict[str, object]]:
    spreads = [row.group.spread(comparison.metric) for row in comparison.rows]
    ends = [end for spread in spreads if spread is not None for end in (*(spread.bounds or ()), *spread.values)]
    span = robust_range(ends) if ends else (0.0, 1.0)
    return [
        {
            "look": row_style(index),
            "index": index,
            "rank": rank_text(row),
            "name": name_of(row),
            "seeds": seeds_text(row),
            "runs": [run.name for run in row.group.members] if len(row.group.members) > 1 else [],
            "settings": [shown(row.group.settings, key) for key in comparison.settings],
            "cells": [spread_cell(metric, row.group) for metric in comparison.columns],
            "bar": _bar(spread, span),
            "decision": decision_text(row),
            "decision_level": DECISION_LEVELS.get(decision_text(row), ""),
            "verdict": verdict_text(row),
            "difference": difference_text(row, comparison.metric) or row.not_compared,
            "is_noise": row.is_first or (row.difference is not None and row.difference.is_noise),
        }
        for index, (row, spread) in enumerate(zip(comparison.rows, spreads, strict=True))
    ]


def _bar(spread: Spread | None, span: tuple[float, float]) -> str:
    """Draws the value with its interval (several seeds: ± 1 sd, and each seed) on a scale common to the column."""
    if spread is None:
        return ""
    x, middle = Scale(*span, 4, BAR_WIDTH - 4).within, BAR_HEIGHT / 2
    low, high = spread.bounds or (spread.mean, spread.mean)
    seeds = "".join(circle(x(value), middle, 2, "seed") for value in spread.values[1:] and spread.values)
    shown = line(x(low), middle, x(high), middle, "") + seeds + circle(x(spread.mean), middle, 4, "")
    return f'<svg class="bar" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">{shown}</svg>'


def _unranked(run: RunRecord, comparison: Comparison, index: int) -> dict[str, object]:
    return {
        "index": index,
        "name": run.name,
        "settings": [shown(run.settings, key) for key in comparison.settings],
        "state": state_text(run),
        "level": STATE_LEVELS.get(run.state, ""),
        "step": run.step,
        "held_out": last_held_out(run),
        "time": speed_text(run, "train_time_s"),
        "pairs_per_s": speed_text(run, "pairs_per_s"),
        "message": run.message,
    }


def _names(comparison: Comparison) -> list[str]:
    """Texts shown at the pointer over a line: rank and differing settings; for an unranked run name and state."""
    ranked = [f"#{rank_text(row)}  {label_of(row, comparison)}" for row in comparison.rows]
    return ranked + [f"{one_line(run.name)} ({state_text(run)})" for run in comparison.unranked]


def _as_script_data(value: object) -> str:
    """Returns JSON that cannot end the script element that contains it."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
