"""compare.csv, and the same rows as JSON: one row per run, every column, numbers as they were measured."""

import csv
import io
import json
from collections.abc import Iterator
from math import isfinite, nan
from pathlib import Path
from typing import Any

from prefopt.comparison.ranking import Comparison, Row
from prefopt.comparison.records import SEED, RunRecord
from prefopt.evaluation.metrics import COMPARED, RUN_COLUMNS, columns_of
from prefopt.process.terminal import printable
from prefopt.reports.render import json_ready
from prefopt.storage.files import write_text

SETTING = "setting."
"""Prefix of a setting's column, so that no setting can be taken for a metric."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet takes for a formula."""


def write_csv(comparison: Comparison, path: Path) -> None:
    """Writes all runs, ranked ones first; what was not measured, or is no finite number, is an empty field.

    Settings that are neither text nor numbers are written as JSON.

    `configuration` is the number of the ranking's row that holds all seeds of one configuration. Rank and difference
    belong to that row, all other fields to the run.
    """
    settings = (printable(f"{SETTING}{key}") for key in _settings(comparison))
    fields = [*RUN_COLUMNS, *settings, *_measured(comparison.runs)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_inert, _rows(comparison)))
    write_text(path, text.getvalue())


def to_json(comparison: Comparison) -> dict[str, object]:
    """Returns what `--json` prints: what runs are ranked by, and the rows of compare.csv.

    A row has no key for what was not measured or does not apply; a metric of a report that is not finite is null.
    Settings have their own types: true, null and lists are not text.
    """
    rows = [
        {
            key: value if isinstance(value, str) else json_ready(value)
            for key, value in row.items()
            if key.startswith(SETTING) or value not in (None, "")
        }
        for row in _rows(comparison)
    ]
    return {"ranked_by": comparison.metric.key, "runs": rows}


def _rows(comparison: Comparison) -> Iterator[dict[str, object]]:
    """Yields a row for each run, ranked ones first."""
    settings = _settings(comparison)
    for number, row in enumerate(comparison.rows, start=1):
        for run in row.group.members:
            yield {**_facts(run, settings), **_judgement(row, number)}
    for run in comparison.unranked:
        yield _facts(run, settings)


def _inert(row: dict[str, object]) -> dict[str, object]:
    """Makes a row harmless: a spreadsheet takes no cell for a formula, and a terminal no cell for a command."""
    cells = {printable(key): _plain(value) if key.startswith(SETTING) else _known(value) for key, value in row.items()}
    return {key: _inert_text(value) if isinstance(value, str) else value for key, value in cells.items()}


def _known(value: object) -> object:
    return "" if isinstance(value, float) and not isfinite(value) else value


def _inert_text(text: str) -> str:
    # The csv module does not quote a lone \r, which would end the row.
    whole = printable(text.replace("\r", "\n"))
    if not text.startswith(FORMULA):
        return whole
    try:
        float(text)
    except ValueError:
        return f"'{whole}"
    return whole


def _settings(comparison: Comparison) -> list[str]:
    """The settings that differ between runs; all settings if none differs, so that the file says what was run."""
    everything = {key: None for run in comparison.runs for key in run.settings if key != SEED}
    return list(comparison.settings or everything)


def _measured(runs: list[RunRecord]) -> list[str]:
    """The columns of metrics in which at least one run has a number."""
    has = {key for run in runs for key, value in _numbers(run).items() if value is not None and isfinite(value)}
    return [column for metric in COMPARED for column in columns_of(metric.key) if column in has]


def _numbers(run: RunRecord) -> dict[str, float | None]:
    """The columns of a run's metrics; NaN for a metric that is no finite number."""
    return dict.fromkeys(run.not_finite, nan) | {
        column: value
        for key, measure in run.metrics.items()
        for column, value in zip(columns_of(key), (measure.value, measure.low, measure.high, measure.n), strict=True)
    }


def _facts(run: RunRecord, settings: list[str]) -> dict[str, object]:
    facts: dict[str, Any] = {
        "run": run.name,
        "where": run.where,
        "state": run.state,
        "step": run.step,
        "seed": run.seed,
        "decision": run.decision,
        "measured_at_step": run.measured_at,
        "message": run.message,
    }
    facts |= {f"{SETTING}{key}": run.settings[key] for key in settings if key in run.settings}
    return facts | _numbers(run)


def _judgement(row: Row, number: int) -> dict[str, object]:
    found = row.difference
    judgement: dict[str, Any] = {
        "rank": row.rank,
        "against_first": f"{row.verdict}: {row.not_compared}" if row.not_compared else row.verdict,
        "configuration": number,
        "refusal": row.refusal,
    }
    if found is None:
        return judgement
    return judgement | {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "difference_method": found.method.value,
    }


def _plain(value: object) -> str | int | float:
    """Returns numbers and strings unchanged; null, booleans and lists as JSON."""
    return (
        value
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else json.dumps(value, default=str)
    )
