"""Where a judge gave no verdict or no number, every page and the terminal say of how many."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefopt.evaluation.report import Report
from prefopt.reports.console import print_report
from prefopt.reports.render import render_report
from tests.unit.test_findings import entry, report
from tests.unit.test_report_render import visible
from tests.unit.test_task_findings import task
from tests.unit.test_win_findings import judged, standing, win

RM = {**standing(0.8), "facts": {"kind": "reward_model", "model": "rm", "num_without_number": 3}}
PANEL = {
    **standing(0.8),
    "facts": {"kind": "panel", "of": {"a": {"num_without_number": 1}, "b": {"num_without_number": 2}, "c": {}}},
}
SAID = "rule: no verdict on 4 of 136 (tuned against base); 3 readings without a number."


def shown(found: dict[str, Any], folder: Path) -> tuple[str, str, str]:
    """What report.html, report.md and the terminal show."""
    report = Report.from_dict(found)
    path = render_report(report, [], [], folder)
    told = io.StringIO()
    print_report(report, path, Console(file=told, width=250))
    return visible(path.read_text()), (folder / "report.md").read_text(), told.getvalue()


@pytest.mark.parametrize("judge", [RM, PANEL], ids=["alone", "in a panel"])
def test_answers_without_a_verdict_or_a_number_are_counted_everywhere(judge: dict[str, Any], tmp_path: Path) -> None:
    wins = [{**win("base", 0.8), "n": 132, "unread": 4}, {**win("guide", 0.7), "n": 132, "unread": 0}]
    for text in shown(judged(*wins, judges={"rule": judge}), tmp_path):
        assert SAID in text
    page, markdown, _ = shown(judged(*wins, judges={"rule": judge}), tmp_path)
    for text in (page, markdown):
        assert text.count("3 readings without a number") == 2, "beside the win rates and what the judge is worth"


@pytest.mark.parametrize(("num", "said"), [(1, "1 prompt without"), (40, "40 prompts without"), (0, None)])
def test_slices_say_how_many_prompts_they_leave_out(num: int, said: str | None, tmp_path: Path) -> None:
    rate = {"value": 0.5, "ci95": [0.4, 0.6], "n": 9}
    slices = {"slices": [{"grouping": "topic", "name": "a", "rate": rate}], "worst": None, "num_without_outcome": num}
    for text in shown(judged(win("base", 0.8), answer_slices=slices), tmp_path)[:2]:
        assert (f"Left out: {said} a verdict." in text) if said else ("Left out" not in text)


def test_numbers_that_are_missing_among_the_pairs_alone_are_said_too(tmp_path: Path) -> None:
    for text in shown(judged(win("base", 0.8), judges={"rule": RM}), tmp_path):
        assert "rule: 3 readings without a number." in text


def test_a_member_of_a_panel_that_is_a_judge_of_its_own_is_counted_once(tmp_path: Path) -> None:
    judges = {"a": {**standing(0.8), "facts": {"kind": "model", "num_without_number": 1}}, "rule": PANEL}
    for text in shown(judged(win("base", 0.8), {**win("base", 0.8), "judge": "a"}, judges=judges), tmp_path):
        assert "a: 1 reading without a number." in text
        assert "rule: 2 readings without a number." in text
        assert "A reading is of one answer, or of two answers in one order" in " ".join(text.split())


def test_a_judge_that_read_all_is_not_mentioned(tmp_path: Path) -> None:
    none = {**RM, "facts": {**RM["facts"], "num_without_number": 0}}
    for text in shown(judged(win("base", 0.8), judges={"rule": none}), tmp_path):
        assert "without a number" not in text
        assert "no verdict on" not in text


def test_answers_of_which_a_task_has_no_value_are_counted_everywhere(tmp_path: Path) -> None:
    checked = task({"base": entry(0.4)})
    checked["contestants"]["tuned"]["without_value"] = 29
    checked["contestants"]["tuned"]["values"]["valid"] = entry(1.0, n=31)
    checked |= {"without_reference": 5}
    said = "mine: no value for 29 of 60 of tuned; nothing in the data to compare with on 5 prompts, left out."
    for text in shown(report(tasks={"mine": checked, "whole": task({"base": entry(0.4)})}), tmp_path):
        assert said in text
        assert "whole: no" not in text
