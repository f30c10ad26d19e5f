"""The page of an audit: one HTML file that says what matters first, and shows it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.config.choices import CheckName, GateName
from prefopt.data.audit.finding import Audit, Finding, Level
from prefopt.data.bad_rows import MISREAD
from prefopt.process.errors import explained
from prefopt.process.terminal import one_line
from prefopt.reports.audit_figures import draw_finding, draw_splits
from prefopt.reports.audit_glossary import CHECKS, MEASURES, Meaning, split_name, title_of
from prefopt.reports.charts.drawing import Figure
from prefopt.reports.numbers import count, moment
from prefopt.reports.render import environment, json_ready
from prefopt.storage.files import write_text

LEVELS = {"error": ("bad", "Error"), "warning": ("warning", "Warning"), "note": ("info", "Note"), "ok": ("good", "OK")}
"""Level of a finding -> its icon and colour, and its word."""
CODE = re.compile(
    r"'data\.columns=\{[^']*\}'"
    r"|prefopt [a-z]+(?: --[a-z-]+(?: <[a-z]+>)?)*"
    r"|--[a-z-]+(?: <[a-z]+>)?"
    r"|\b(?:data|algorithm|trainer|model)[./][a-z_./]+=(?:[^\s,;()]*[^\s,;().:])?"
)
"""What is typed as it stands, within the sentences of a remedy."""
MAX_SUSPICIOUS = 20
"""Rows of a ranking that are shown; audit.json has more."""


@dataclass(frozen=True)
class Card:
    """A finding as the page shows it.

    Attributes:
        name: Name of the check, also the anchor.
        title: The check in words.
        icon: Icon and colour.
        word: The level as a word.
        count: Rows concerned; empty if the finding is about the data as a whole.
        share: Their share, or the number that is judged in its place, as text.
        measure: Words before a number that is no share of the rows; else empty.
        width: The share in percent, for the bar.
        limit: Which limit is exceeded, as text; empty if none.
        summary: One sentence.
        remedy: Pieces of the remedy, each with whether it is code.
        examples: Rows.
        figures: Charts.
        words: Words that tell a side, by side.
        suspicious: Rows of a ranking, the worst first: place and number.
        groups: By `source` (files or parts of the data) and by `tag`, the largest first: name, and the share of each
            finding in it.
    """

    name: str
    title: str
    icon: str
    word: str
    count: str
    share: str
    measure: str
    width: float
    limit: str
    summary: str
    remedy: list[tuple[str, bool]]
    examples: list[dict[str, str]]
    figures: list[Figure]
    words: dict[str, list[str]]
    suspicious: list[tuple[str, str]]
    groups: dict[str, list[tuple[str, str]]]


def write_audit_page(audit: Audit, path: Path, *, command: str = "", sections: Iterable[str] = ()) -> None:
    """Writes the page, completely or not at all.

    Args:
        audit: Its texts may hold anything; they are escaped.
        path: The HTML file.
        command: The command that made it, as typed; empty if unknown.
        sections: Further parts, each a `<section>` of HTML: the learning curve.

    Raises:
        UserError: The file cannot be written.
    """
    page = render_audit_page(audit, command=command, sections=sections)
    with explained(path, doing="written"):
        write_text(path, page)


def render_audit_page(audit: Audit, *, command: str = "", sections: Iterable[str] = ()) -> str:
    """Returns the page; see `write_audit_page`."""
    audit = Audit.from_dict(json_ready(audit.to_dict()))
    found = audit.of_level(Level.error, Level.warning, Level.note)
    fine = audit.of_level(Level.ok)
    splits = draw_splits(audit)
    icon, verdict = describe_verdict(audit)
    content = {
        "icon_of_page": icon,
        "verdict": verdict,
        "lead": describe_worst(audit),
        "facts": describe_facts(audit),
        "command": one_line(command),
        "mending": one_line(name_mending(audit, command)),
        "cards": [_card(finding) for finding in found],
        "fine": [(title_of(finding.check), _sentence(finding.summary)) for finding in fine],
        "shape": [*([] if splits is None else [splits]), *(each for f in fine for each in draw_finding(f))],
        "remarks": [_sentence(one_line(remark)) for remark in audit.remarks],
        "skipped": _by_reason(audit),
        "terms": _terms(audit),
        "sections": list(sections),
    }
    return environment("prefopt.reports").get_template("audit.html.j2").render(content)


def describe_verdict(audit: Audit) -> tuple[str, str]:
    """Returns the icon and the few words of the page's heading."""
    errors, warnings = (len(audit.of_level(level)) for level in (Level.error, Level.warning))
    told = [_say(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number]
    if told:
        return "bad" if errors else "warning", ", ".join(told)
    if audit.gate == GateName.off.value:
        return "info", "Not judged"
    return ("good", "Clean") if not audit.of_level(Level.note) else ("good", "No errors, no warnings")


def describe_worst(audit: Audit) -> str:
    """Returns the sentence below the heading: how many rows, and what is worst in them."""
    rows = f"{_say(audit.rows, 'row')}"
    worst = audit.of_level(Level.error, Level.warning)
    if worst and worst[0].check == CheckName.schema.value:
        return f"{_sentence(worst[0].summary)} Checked: {rows}."
    if worst:
        return f"In {rows}, first of all: {worst[0].summary}."
    if audit.gate == GateName.off.value:
        return f"The gate is off (data/gate=off): what was found in {rows} is told below, and nothing is judged."
    notes = len(audit.of_level(Level.note))
    ran = f"{_say(len(audit.checks), 'check')} found nothing in {rows}"
    if notes:
        ran = f"What was found in {rows} is below the limits of data/gate={audit.gate}: {_say(notes, 'note')}"
    left = f"; {_say(len(audit.skipped), 'check')} did not run" if audit.skipped else ""
    return f"{ran}{left}."


def describe_facts(audit: Audit) -> list[str]:
    """Returns what the audit was of, when, and by which rules."""
    splits = ", ".join(f"{count(number)} {split_name(name)}" for name, number in audit.splits.items())
    return [
        text for text in (splits, moment(audit.date), f"prefopt {audit.version}", f"data/gate={audit.gate}") if text
    ]


def split_code(remedy: str) -> list[tuple[str, bool]]:
    """Returns the pieces of a remedy in order, each with whether it is to be typed as it stands."""
    pieces, end = [], 0
    for match in CODE.finditer(remedy):
        pieces += [(remedy[end : match.start()], False), (match.group(), True)]
        end = match.end()
    return [piece for piece in (*pieces, (remedy[end:], False)) if piece[0]]


def _card(finding: Finding) -> Card:
    icon, word = LEVELS[finding.level]
    values = finding.values
    judged = finding.gauge if finding.check in MEASURES else finding.share
    return Card(
        name=finding.check,
        title=title_of(finding.check),
        icon=icon,
        word=word,
        count=count(finding.count) if finding.count and finding.check not in MEASURES else "",
        share=_percent(judged),
        measure=MEASURES.get(finding.check, ""),
        width=round(100 * min(max(judged, 0.0), 1.0), 2),
        limit="" if finding.limit is None else _describe_limit(finding, finding.limit),
        summary=_sentence(finding.summary),
        remedy=split_code(_sentence(finding.remedy)),
        examples=finding.examples,
        figures=draw_finding(finding),
        words={side: words for side, words in (values.get("words") or {}).items() if words},
        suspicious=[
            (str(each.get("source")), f"{each.get('log_odds')}")
            for each in (values.get("suspicious") or [])[:MAX_SUSPICIOUS]
        ],
        groups={
            group: [(str(each["name"]), _describe_group(each)) for each in values.get(f"{group}s") or []]
            for group in ("source", "tag")
        },
    )


def _describe_group(group: Mapping[str, Any]) -> str:
    shares = sorted(group["findings"].items(), key=lambda item: -item[1])
    told = ", ".join(f"{title_of(check)} {_percent(share)}" for check, share in shares if share)
    return f"{_say(group['rows'], 'row')}: {told or 'nothing found'}"


def _sentence(text: str) -> str:
    """Begins with a capital, unless it begins with what is typed, and ends with a full stop."""
    begins = text[:1] if CODE.match(text) else text[:1].upper()
    return f"{begins}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


def _describe_limit(finding: Finding, limit: float) -> str:
    return f"over the {finding.level} limit of {100 * limit:g} %"


def _percent(share: float) -> str:
    """Formats a share so that what is there is not shown as 0 %."""
    percent = 100 * share
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def _say(number: int, word: str) -> str:
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def name_mending(audit: Audit, command: str) -> str:
    """Returns the command that mends what it can; empty if it did so, nothing can be mended, or rows are misread."""
    mended = [finding.remedy for finding in audit.checks if "--fix" in finding.remedy]
    if not command or "--fix" in command or not mended:
        return ""
    if any(MISREAD in finding.remedy for finding in audit.checks):
        return ""
    fix = "--fix --near" if all("--fix --near" in remedy for remedy in mended) else "--fix"
    return f"{command} {fix}" if "--output" in command else f"{command} --output mended {fix}"


def _by_reason(audit: Audit) -> dict[str, str]:
    """Returns the reasons for which checks were not run -> the titles of these checks."""
    reasons: dict[str, list[str]] = {}
    for each in audit.skipped:
        reasons.setdefault(each["reason"], []).append(title_of(each["check"]))
    return {reason: ", ".join(titles) for reason, titles in reasons.items()}


def _terms(audit: Audit) -> dict[str, Meaning]:
    """Returns what the checks mean that found something, ran or were skipped, by the names that settings have."""
    names = {*(finding.check for finding in audit.checks), *(each["check"] for each in audit.skipped)}
    return {name: meaning for name, meaning in CHECKS.items() if name in names}
