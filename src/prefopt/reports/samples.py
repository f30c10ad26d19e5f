"""The answers of a report side by side: what each judge says of them, and why they are shown first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefopt.config.contestants import TAKEN
from prefopt.evaluation.judging import LOSS, WIN
from prefopt.evaluation.metrics import TUNED
from prefopt.evaluation.report import Report
from prefopt.reports.numbers import count

STYLED = ("base", "tuned", "chosen", "rejected")
"""Answers with a style of their own; names of other contestants are the user's."""
OF_DATA = {"chosen": "Chosen in the data", "rejected": "Rejected in the data"}
LEVELS = {WIN: "good", LOSS: "bad"}
"""What a judge says -> the level of a finding that is as good or bad."""


@dataclass(frozen=True)
class Reading:
    """What a judge says of two answers: `text` is `loss against brief`, `level` good, bad or empty."""

    text: str
    level: str


@dataclass(frozen=True)
class Sample:
    """The answers to one prompt.

    Attributes:
        prompt: The prompt.
        answers: Title, CSS class and text of each answer: those of the contestants, then those of the data.
        rendered: The prompt as the model sees it; None if that is the same, or not known.
        readings: Name of a judge -> what it says.
        remarks: Why it stands where it stands, and the level of each.
    """

    prompt: str
    answers: list[tuple[str, str, str]]
    rendered: str | None = None
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    remarks: list[tuple[str, str]] = field(default_factory=list)


def read_samples(report: Report) -> list[Sample]:
    """Returns the answers that a report shows, in its order."""
    return [_read(sample) for sample in report.samples or [] if isinstance(sample, Mapping)]


def _read(sample: Mapping[str, Any]) -> Sample:
    texts = {name: str(text) for name, text in sample.items() if name not in TAKEN and text is not None}
    of_data = {name: str(sample[name]) for name in OF_DATA if sample.get(name) is not None}
    answers = [
        (OF_DATA.get(name, name.capitalize()), name if name in STYLED else "other", text)
        for name, text in (texts | of_data).items()
    ]
    prompt, rendered = str(sample.get("prompt") or ""), sample.get("rendered")
    readings: dict[str, list[Reading]] = {}
    for each in sample.get("readings") or []:
        readings.setdefault(str(each.get("judge")), []).append(_reading(each))
    is_other = rendered is not None and str(rendered).strip() != prompt.strip()
    remarks = _remarks(sample.get("ranking") or {}, len(next(iter(readings.values()), [])))
    return Sample(prompt, answers, str(rendered) if is_other else None, readings, remarks)


def _reading(entry: Mapping[str, Any]) -> Reading:
    word, a, b = (str(entry.get(key)) for key in ("reading", "a", "b"))
    of = "" if a == TUNED else f"{a}: "
    return Reading(f"{of}{word} against {b}", LEVELS.get(word, ""))


def _remarks(ranking: Mapping[str, Any], num_met: int) -> list[tuple[str, str]]:
    """Says of a prompt that the tuned model lost it, or ranks its pair wrongly."""
    lost, pairs, wrong = (ranking.get(key) or 0 for key in ("lost", "pairs", "wrong"))
    found = [(f"lost to {count(lost)} of {count(max(num_met, lost))}", "bad")] if lost else []
    if wrong:
        found.append(("pair ranked wrongly" if pairs == 1 else f"{wrong} of {pairs} pairs ranked wrongly", "warning"))
    return found


def _was_judged(report: Report, judge: str) -> bool:
    """Whether a judge read answers of the tuned model beside another's."""
    return any(each.judge == judge and TUNED in (each.a, each.b) for each in report.win_rates or [])


def describe_order(report: Report) -> str:
    """Says of how many prompts these answers are, and which stand first; empty in reports of earlier versions."""
    counts = report.sample_counts or {}
    num, prompts = len(report.samples or []), counts.get("prompts")
    if not prompts:
        return ""
    shown = f"{count(num)} of {count(prompts)} answered prompts"
    judge = next(iter(report.judges or {}), None)
    lost, wrong = (count(counts.get(key, 0)) for key in ("lost", "wrongly_ranked"))
    if judge is None or not (counts.get("lost") or _was_judged(report, judge)):
        return f"{shown}, those of wrongly ranked pairs first ({wrong})." if counts.get("wrongly_ranked") else ""
    first = f"first those that the tuned model lost by the judge {judge} ({lost}), then wrongly ranked pairs ({wrong})"
    return f"{shown}: {first}. A reading is of the tuned model's answer. All of them are in answers.jsonl."
