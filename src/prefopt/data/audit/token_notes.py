"""The findings about tokens of a run, which tokenises its rows in any case: from its counts, without a second pass.

Counts name no rows but the first with a control token; `prefopt audit` with the run's model names the others.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefopt.config.choices import CheckName
from prefopt.config.gate import GateConfig
from prefopt.data.audit.audit import refuse
from prefopt.data.audit.check import say
from prefopt.data.audit.control_tokens import COUNTS, HARMLESS
from prefopt.data.audit.finding import Audit, Finding, sort_findings
from prefopt.data.audit.reading import Entry
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.notes import SplitName


def audit_tokens(audit: Audit | None, notes: Mapping[SplitName, TokenizeNotes], gate: GateConfig) -> Audit:
    """Returns an audit with the findings of `truncation` and `control_tokens`, and applies the gate to them.

    Args:
        audit: What the other checks have found.
        notes: The counts of tokenising, by split.
        gate: The limits.

    Raises:
        UserError: A finding is an error by the gate's limits.
    """
    assert audit is not None, "rank 0 has audited the rows"
    found = [Finding.of(entry, gate) for entry in (_truncation(notes), _control_tokens(notes))]
    names = [finding.check for finding in found]
    skipped = [each for each in audit.skipped if each["check"] not in names]
    whole = replace(audit, checks=sort_findings([*audit.checks, *found]), skipped=skipped)
    refuse(whole)
    return whole


def _truncation(notes: Mapping[SplitName, TokenizeNotes]) -> Entry:
    cut, prompts, skipped = (
        _sum(notes, name) for name in ("num_truncated", "num_long_prompt_skipped", "num_long_completion_skipped")
    )
    count = cut + prompts + skipped
    told = f": {cut:,} cut, {prompts + skipped:,} left out" if count else ""
    return _entry(
        CheckName.truncation,
        notes,
        count=count,
        summary=f"{say(count, 'row is', 'rows are')} longer than data.max_length{told}",
        remedy="Raise data.max_length: a cut answer loses its end, and the model never learns to stop there.",
    )


def _control_tokens(notes: Mapping[SplitName, TokenizeNotes]) -> Entry:
    named = _sum(notes, "num_control_kept") + _sum(notes, "num_control_stripped")
    counts = {name: count for name in COUNTS if (count := _sum(notes, name))}
    count = named + sum(number for name, number in counts.items() if name != HARMLESS)
    told = [f"{say(number, 'row')} {COUNTS[name]}" for name, number in counts.items()]
    firsts = [each.first_control_token.rpartition(": ") for each in notes.values() if each.first_control_token]
    return _entry(
        CheckName.control_tokens,
        notes,
        count=count,
        summary="; ".join([f"{say(named, 'row')} with control tokens in the text", *told]),
        remedy="data.on_control_token=strip removes control tokens; prefopt show --row <number> shows a row.",
        examples=[{"source": source, "detail": f"holds {token}", "text": ""} for source, _, token in firsts],
        values=counts,
    )


def _sum(notes: Mapping[SplitName, TokenizeNotes], name: str) -> int:
    return sum(getattr(each, name) for each in notes.values())


def _entry(check: CheckName, notes: Mapping[SplitName, TokenizeNotes], *, count: int, **said: Any) -> Entry:
    share = min(count / max(_sum(notes, "num_rows"), 1), 1.0)
    found = {"check": check.value, "count": count, "share": share, "gauge": share}
    return {**found, "examples": [], "values": {}, **said}
