"""Prints the summary of a report in the terminal: decision, numbers, findings, path of the report."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from prefopt.evaluation.report import Report
from prefopt.reports.numbers import NOT_APPLICABLE, Cell
from prefopt.reports.sections import Table, drift_table, headline, held_out_table
from prefopt.reports.wins import describe_missing, describe_unread

MODELS = ("Base", "Tuned")
STYLES = {"good": "green", "info": "blue", "warning": "yellow", "bad": "red"}
WORDS = {"good": "good", "info": "note", "warning": "warn", "bad": "bad"}


def print_report(report: Report, path: Path, console: Console) -> None:
    """Prints a compact summary of `report`; `path` is the file of the full report."""
    shown = headline(report)
    console.print()
    console.print(
        Text.assemble((f" {shown.decision.upper()} ", f"bold reverse {STYLES[shown.level]}"), " ", shown.reason or "")
    )
    if shown.caveat:
        console.print(shown.caveat)
    console.print(shown.sentence)
    tables = [table for table in (held_out_table(report), drift_table(report)) if table]
    if tables:
        console.print(_numbers(tables))
    else:
        console.print()
    for unread in (*describe_unread(report), *describe_missing(report)):
        console.print(_line("note", STYLES["info"], unread))
    for finding in report.verdict or []:
        console.print(_finding(finding))
    for wanted in shown.would_decide:
        console.print(_line("need", "blue", wanted))
    console.print(Text.assemble("Report: ", (str(path), "bold")), soft_wrap=True)


def _numbers(tables: list[Table]) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    shown.add_column("")
    for name in (*MODELS, "n"):
        shown.add_column(name.lower(), justify="right", no_wrap=True)
    for table in tables:
        for row in table.rows:
            cells = dict(zip(table.columns, row.cells, strict=True))
            values = [_cell(cells.get(model, NOT_APPLICABLE)) for model in MODELS]
            shown.add_row(row.label, *values, Text(row.num, "dim"))
    return shown


def _cell(shown: Cell) -> Text:
    if not shown.interval:
        return Text(shown.value)
    return Text.assemble((shown.value, "bold"), (f" ({shown.interval})", "dim"))


def _finding(finding: dict[str, str]) -> RichTable:
    evidence = f" {finding['evidence']}" if finding.get("evidence") else ""
    level = finding["level"]
    return _line(WORDS[level], STYLES[level], Text.assemble(finding["finding"], (evidence, "dim")))


def _line(word: str, style: str, text: Text | str) -> RichTable:
    line = RichTable.grid(padding=(0, 1))
    line.add_column(width=4, no_wrap=True)
    line.add_column()
    line.add_row(Text(word, f"bold {style}"), text)
    return line
