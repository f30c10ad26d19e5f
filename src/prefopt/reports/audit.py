"""Shows an audit in the terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefopt.data.audit.check import say
from prefopt.data.audit.finding import Audit, Finding, Level
from prefopt.process.terminal import one_line
from prefopt.reports.audit_glossary import MEASURES, split_name

STYLES = {Level.error: "bold red", Level.warning: "yellow", Level.note: "cyan", Level.ok: "green"}
SHOWN_TEXT = 100
"""Most letters of a row's text that are shown."""


def print_audit(audit: Audit, console: Console) -> None:
    """Prints the findings, worst first, then what was found in order and what was not checked."""
    for finding in audit.of_level(Level.error, Level.warning, Level.note):
        _print_finding(finding, console)
    fine = [finding.check for finding in audit.of_level(Level.ok)]
    if fine:
        console.print(Text.assemble(("ok       ", STYLES[Level.ok]), ", ".join(fine)))
    reasons: dict[str, list[str]] = {}
    for each in audit.skipped:
        reasons.setdefault(each["reason"], []).append(each["check"])
    for reason, checks in reasons.items():
        console.print(Text.assemble(("skipped  ", "dim"), f"{', '.join(checks)}: {reason}"))
    for remark in audit.remarks:
        console.print(Text.assemble(("reading  ", "dim"), one_line(remark)), soft_wrap=True)
    console.print(Text(describe(audit), "bold"))


def describe(audit: Audit) -> str:
    """Returns one line: rows, findings by level, and the gate."""
    splits = ", ".join(f"{count:,} {split_name(split)}" for split, count in audit.splits.items())
    words = {Level.error: "error", Level.warning: "warning", Level.note: "note"}
    counts = [(len(audit.of_level(level)), word) for level, word in words.items()]
    told = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    return f"{say(audit.rows, 'row')} ({splits}): {told} (data/gate={audit.gate})"


def describe_measure(finding: Finding) -> str:
    """Returns the number that the gate judges, with its limit if that is exceeded."""
    limit = "" if finding.limit is None else f", limit {100 * finding.limit:g} %"
    measure = MEASURES.get(finding.check)
    if measure is not None:
        return f"{measure} {_percent(finding.gauge)}{limit}"
    return f"{say(finding.count, 'row')}, {_percent(finding.share)}{limit}"


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _print_finding(finding: Finding, console: Console) -> None:
    level = Level[finding.level]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8, no_wrap=True)
    grid.add_column(overflow="fold")
    title = Text.assemble((finding.check, "bold"), f"  {describe_measure(finding)}")
    grid.add_row(Text(finding.level, STYLES[level]), title)
    grid.add_row("", Text(finding.summary))
    for example in finding.examples:
        detail = f"  {one_line(example['detail'])}" if example["detail"] else ""
        text = f"  {one_line(example['text'])[:SHOWN_TEXT]}" if example["text"] else ""
        grid.add_row("", Text.assemble((example["source"], "magenta"), detail, (text, "dim")))
    if finding.remedy:
        grid.add_row("", Text.assemble(("-> ", "green"), finding.remedy))
    console.print(Padding(grid, (0, 0, 1, 0)))
