"""Writes report.json, report.md and report.html."""

import math
import re
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from prefopt.evaluation.report import Report
from prefopt.process.terminal import REPLACEMENT
from prefopt.reports import facts, sections
from prefopt.reports.figures import curve_note, result_figures, training_figures
from prefopt.reports.glossary import terms_for
from prefopt.reports.overview import build_overview
from prefopt.reports.samples import describe_order, read_samples
from prefopt.reports.time import time_block
from prefopt.reports.wins import answer_slices_table, judges_table, tasks_table, wins_table
from prefopt.storage.files import write_json, write_text

LEVELS = {"good": "Good", "info": "Note", "warning": "Warning", "bad": "Bad"}
"""Level of a finding -> the word beside its icon."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Those that HTML forbids, and those that make text look as if its letters stood in another order."""
SURROGATES = re.compile(r"[\ud800-\udfff]")


def render_report(
    report: Report,
    metrics: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    folder: Path,
    read_phases: Callable[[], dict[str, float]] | None = None,
) -> Path:
    """Writes the report's five files into `folder`, each one completely or not at all.

    Args:
        report: The evaluation's results; missing parts are shown as not measured or left out.
        metrics: The lines of metrics.jsonl.
        pairs: Margins per held-out pair: `base_margin`, `tuned_margin`, `reward_margin`.
        folder: Created if absent.
        read_phases: Returns the report's `phases`; called after drawing the charts, so that this time is included.

    Returns:
        The path of report.html.
    """
    written, metrics, pairs = json_ready(report.to_dict()), json_ready(metrics), json_ready(pairs)
    shown = Report.from_dict(written)
    charts = {
        "result_figures": result_figures(shown.held_out, pairs),
        "training_figures": training_figures(metrics, pairs),
    }
    if read_phases is not None:
        report.phases = shown.phases = written["phases"] = read_phases()
    content = {**_content(shown), "terms": terms_for(written)}
    templates = environment("prefopt.reports")
    html = templates.get_template("report.html.j2").render(content, **charts, curve_note=curve_note(metrics))
    markdown, card = (templates.get_template(f"{name}.md.j2").render(content) for name in ("report", "card"))
    summary = templates.get_template("summary.html.j2").render(page=build_overview(shown))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", written)
    write_text(folder / "report.md", markdown)
    write_text(folder / CARD, card)
    write_text(folder / SUMMARY, summary)
    write_text(folder / "report.html", html)
    return folder / "report.html"


SUMMARY = "summary.html"
"""File with one screen for whoever decides without reading the report."""
CARD = "card.md"
"""File with the decision and its reasons, short enough for a pull request."""


def _content(report: Report) -> dict[str, Any]:
    return {
        "name": (report.run or {}).get("name") or "unnamed run",
        "headline": sections.headline(report),
        "subtitle": facts.subtitle(report),
        "verdict": report.verdict or [],
        "decided_by": [] if report.decision is None else report.decision.decided_by,
        "levels": LEVELS,
        "evidence": [f"{key} {digest[:12]}" for key, digest in (report.evidence or {}).items() if digest]
        or ["not recorded"],
        "held_out": sections.held_out_table(report),
        "wins": wins_table(report),
        "judges": judges_table(report),
        "tasks": tasks_table(report),
        "answer_slices": answer_slices_table(report),
        "slices": sections.slices_table(report),
        "overfitting": sections.overfitting_table(report),
        "drift": sections.drift_table(report),
        "likelihood": sections.likelihood_table(report),
        "samples": read_samples(report),
        "sample_order": describe_order(report),
        "audit": sections.audit_table(report),
        "data_notes": (report.data or {}).get("notes") or [],
        "throughput": facts.throughput_facts(report),
        "time": time_block(report),
        "run": facts.run_facts(report),
        "provenance": facts.provenance_facts(report),
    }


def environment(*packages: str, clean: Callable[[str], str] | None = None) -> Environment:
    """Returns the Jinja environment for the templates of `packages`: HTML is escaped, and every text is cleaned.

    Args:
        packages: Packages with a folder `templates/`; if several have a template of one name, the first is used.
        clean: Makes a text harmless; None: control characters are made visible, and line breaks stay.
    """

    def finalize(value: object) -> object:
        return (clean or _printable)(value) if type(value) is str else value

    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    made.filters |= {"markdown": _markdown, "fenced": _fenced, "unbroken": _unbroken}
    return made


def _printable(text: str) -> str:
    """Makes control characters in model output visible: they are invalid, or text would not be what it looks like."""
    return CONTROL_CHARACTERS.sub(REPLACEMENT, text)


def _markdown(text: str) -> str:
    """Returns `text` as one line of Markdown, escaped so that it starts no table cell, tag, link or image."""
    line = " ".join(text.split())
    escaped = re.sub(r"([\\|`*])", r"\\\1", line).replace("](", "]\\(")
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _fenced(text: str) -> str:
    """Returns `text` as a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _unbroken(text: str) -> str:
    """Puts non-breaking spaces between numbers and their units or names: `95 % CI`, `n = 132`."""
    for tied in (" %", "% CI", "n = ", "p = "):
        text = text.replace(tied, tied.replace(" ", "\u00a0"))
    return text


def json_ready(value: object) -> Any:
    """Returns a copy that strict JSON can hold: NaN and infinity become None, NumPy scalars become Python's."""
    if isinstance(value, dict):
        return {SURROGATES.sub(REPLACEMENT, str(key)): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return SURROGATES.sub(REPLACEMENT, str(value))
