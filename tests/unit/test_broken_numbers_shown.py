"""Where a report has numbers that are none, no page, card, table or finding of it shows nan or inf."""

import io
import re
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.checked import sum_up_checks
from prefopt.evaluation.findings import assess
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Bootstrap, Prompts
from prefopt.evaluation.tasks.task import Checked
from prefopt.reports.console import print_report
from prefopt.reports.render import render_report
from tests.unit.test_findings import entry
from tests.unit.test_findings import report as of_pairs
from tests.unit.test_report_render import dpo_report, sft_report, visible
from tests.unit.test_win_findings import CONTESTANTS, judged, standing, win

NO_NUMBER = re.compile(r"\b(nan|inf)\b")
NOTHING: dict[str, Any] = {"value": nan, "ci95": [nan, nan], "n": 0, "n_prompts": 0}
SILENT = {**standing(0.0), "kappa": NOTHING, "agreement": NOTHING, "consistency": nan, "first_slot": nan, "unread": 24}


def replaced(found: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Returns a report with each of its estimates changed."""
    if isinstance(found, dict):
        made = {key: replaced(each, change) for key, each in found.items()}
        return change(made) if "value" in made and "ci95" in made else made
    return [replaced(each, change) for each in found] if isinstance(found, list) else found


def of_task(main: str, num: int, values: dict[str, float], **details: Any) -> dict[str, Any]:
    checked = {name: Checked({main: np.full(num, each)}, {main: True}, details) for name, each in values.items()}
    return sum_up_checks(checked, Prompts.all_different(num), Bootstrap(50, 0)).to_dict()


SIDES = {"base": 3.0, "guide": 4.0, "tuned": 5.0}
TASKS = {
    "of few answers": of_task("c", 6, SIDES),
    "without a label": of_task("accuracy", 6, dict.fromkeys(SIDES, nan), num_without_label=6),
    "too large": of_task("c", 40, {"base": -1e308, "guide": -1e308, "tuned": 1e308}),
    "too large on one side": of_task("c", 40, {**SIDES, "guide": 1e308}),
}
WINS = [win("base", 0.8), win("guide", 0.7)]
SLICES = {
    "slices": [{"grouping": "topic", "name": "refunds", "rate": entry(0.3, n=40), "gap": entry(0.1), "p_value": 0.01}],
    "worst": {"grouping": "topic", "name": "refunds"},
}
WHOLE = {
    "preferences": of_pairs(),
    "as shown": dpo_report(),
    "demonstrations": sft_report(),
    "judged": judged(*WINS, answer_slices=SLICES, tasks={"c": of_task("c", 40, SIDES)}),
}
CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "nan": lambda found: {**found, "value": nan, "ci95": [nan, nan]},
    "inf": lambda found: {**found, "value": inf, "ci95": [-inf, inf]},
    "no interval": lambda found: {**found, "ci95": [nan, nan]},
    "one prompt": lambda found: {**found, "ci95": [nan, nan], "n": 1, "n_prompts": 1},
    "nothing": lambda found: {**found, **NOTHING},
}
REPORTS = {
    **{f"{name}, {how}": replaced(found, change) for name, found in WHOLE.items() for how, change in CHANGES.items()},
    **{f"task {name}": of_pairs(tasks={"c": each}, contestants=CONTESTANTS) for name, each in TASKS.items()},
    "a judge without verdicts": judged(
        *({**each, **NOTHING, "unread": 24, "ties": 0, "adjusted": None} for each in WINS),
        judges={"rule": {**SILENT, "facts": {"kind": "model"}}, "other": standing(0.0)},
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_no_page_and_no_finding_shows_a_number_that_is_none(name: str, tmp_path: Path) -> None:
    report = Report.from_dict(REPORTS[name])
    report.decision, found = assess(report, EvaluationConfig())
    report.verdict = [each.to_dict() for each in found]
    path, told = render_report(report, [], [], tmp_path), io.StringIO()
    print_report(report, path, Console(file=told, width=200))
    shown = {each.name: each.read_text() for each in tmp_path.iterdir()} | {"the terminal": told.getvalue()}
    assert shown.keys() >= {"report.html", "report.md", "report.json", "card.md", "summary.html"}
    for where, text in shown.items():
        seen = visible(re.sub(r"(?s)<style.*?</style>", "", text)) if where.endswith("html") else text
        hit = NO_NUMBER.search(seen)
        assert hit is None, f"{where}: {seen[max(hit.start() - 90, 0) : hit.end() + 30]}"
