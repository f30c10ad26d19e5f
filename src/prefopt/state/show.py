"""Prints the state of runs: a table on a terminal, plain lines elsewhere, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.process.terminal import quote
from prefopt.runs.find import Group, Kind
from prefopt.state.advice import Advice
from prefopt.state.look import View
from prefopt.state.run_status import OVER, RunStatus, Word
from prefopt.state.wording import clean, clean_name, describe_time

MANY = 20
"""If a group has more runs than this, finished ones are only counted."""
LIMIT = 50
"""Most rows of a group's table."""
ORDER = {word: number for number, word in enumerate(Word)}
STYLES = {
    Word.failed: "bold red",
    Word.stopped: "bold red",
    Word.diverged: "bold red",
    Word.killed: "bold red",
    Word.damaged: "bold red",
    Word.running: "blue",
    Word.preempted: "yellow",
    Word.queued: "cyan",
    Word.not_begun: "dim",
    Word.pruned: "magenta",
    Word.done: "green",
}
WIDE, MEDIUM = 100, 60
"""Terminal widths: the table has the loss from `WIDE` characters on, and step and ETA from `MEDIUM` on."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The runs of a group that are listed, and the number of those left out."""

    rows: list[RunStatus]
    num_left_out: int = 0


def print_view(view: View, advices: Sequence[Advice], console: Console, *, everything: bool) -> None:
    """Prints a view: as a table that fits the terminal, or as whole lines if the output is no terminal.

    Args:
        view: The runs.
        advices: What to do next.
        console: Output.
        everything: Whether to list every run.
    """
    for group, runs in view.groups:
        console.print(_summary(group, runs), soft_wrap=True)
        shown = choose(runs, everything=everything)
        if console.is_terminal and shown.rows:
            console.print(_table(shown.rows, console.width))
        else:
            for run in shown.rows:
                console.print(_line(run), soft_wrap=True)
        if shown.num_left_out:
            console.print(Text(f"and {shown.num_left_out:,} more; --all lists them", "dim"), soft_wrap=True)
        console.print()
    for note in view.notes:
        console.print(Text(f"note: {clean(note)}", "yellow"), soft_wrap=True)
    if advices:
        console.print(Text("What to do next", "bold"), soft_wrap=True)
    for advice in advices:
        parts = [f"  {advice.situation}: ", clean_name(advice.what)]
        console.print(Text.assemble((parts[0], "bold"), parts[1]), soft_wrap=True)
        if advice.command is not None:
            console.print(Text(f"    {clean_name(advice.command)}", "green"), soft_wrap=True)


def choose(runs: Sequence[RunStatus], *, everything: bool) -> Shown:
    """Returns the runs to list, the most urgent first; of more than `MANY` runs only those that are not over."""
    if everything:
        return Shown(list(runs))
    is_listed = [run for run in runs if len(runs) <= MANY or run.word not in OVER]
    rows = sorted(is_listed, key=lambda run: ORDER[run.word])
    return Shown(rows[:LIMIT], max(0, len(rows) - LIMIT))


def count_words(runs: Sequence[RunStatus]) -> dict[str, int]:
    """Counts the runs in each state, the most urgent first; states without runs are left out."""
    counts = {word.value: sum(run.word is word for run in runs) for word in Word}
    return {word: number for word, number in counts.items() if number}


def _summary(group: Group, runs: Sequence[RunStatus]) -> Text:
    own = [run for run in runs if run.place.kind.trains]
    others = {kind: [run for run in runs if run.place.kind is kind] for kind in (Kind.reference, Kind.sample)}
    parts = [Text(f"{kind.value}: ").append_text(_counts(found)) for kind, found in others.items() if found]
    if own or group.is_sweep or not parts:
        parts.insert(0, Text(f"{_count_runs(group, own)}: ").append_text(_counts(own)))
    return Text.assemble((clean_name(group.title), "bold"), "  ", Text("; ").join(parts))


def _count_runs(group: Group, runs: Sequence[RunStatus]) -> str:
    is_search = any(run.place.kind is Kind.trial for run in runs)
    what = "trial" if is_search else "point" if group.is_sweep else "run"
    return f"{len(runs):,} {what}{'' if len(runs) == 1 else 's'}"


def _counts(runs: Sequence[RunStatus]) -> Text:
    parts = [Text(f"{number:,} {word}", STYLES[Word(word)]) for word, number in count_words(runs).items()]
    return Text(", ").join(parts) if parts else Text("none")


def _table(runs: Sequence[RunStatus], width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("state", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=12)
    columns = {
        "kind": ["" if run.place.kind.trains else run.place.kind.value for run in runs],
        "step": [_steps(run) if width >= MEDIUM else "" for run in runs],
        "ETA": [_eta(run) if width >= MEDIUM else "" for run in runs],
        "loss": [_loss(run) if width >= WIDE else "" for run in runs],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    for head in columns:
        table.add_column(head, justify="left" if head == "kind" else "right", no_wrap=True)
    table.add_column("", overflow="fold", min_width=12)
    for number, run in enumerate(runs):
        numbers = [] if width >= MEDIUM else [", ".join(_numbers(run))]
        words = "\n".join(filter(None, [*numbers, run.why, _log(run)]))
        cells = [Text(cells[number]) for cells in columns.values()]
        table.add_row(Text(run.word.value, STYLES[run.word]), Text(clean_name(run.place.name)), *cells, Text(words))
    return table


def _line(run: RunStatus) -> Text:
    """Formats a run as one line of text that can be searched, such as with grep."""
    parts = [
        f"{run.word.value:<9}",
        clean_name(run.place.name),
        "" if run.place.kind.trains else f"kind {run.place.kind.value}",
        *_numbers(run),
        run.why,
        _log(run),
    ]
    return Text("  ".join(part for part in parts if part))


def _numbers(run: RunStatus) -> list[str]:
    named = {"step": _steps(run), "ETA": _eta(run), "loss": _loss(run)}
    return [f"{name} {text}" for name, text in named.items() if text]


def _eta(run: RunStatus) -> str:
    return "" if run.eta_s is None else describe_time(run.eta_s)


def _loss(run: RunStatus) -> str:
    return "" if run.loss is None else f"{run.loss:z.4f}"


def _steps(run: RunStatus) -> str:
    if run.step is None:
        return ""
    return f"{run.step}" if run.total is None else f"{run.step}/{run.total}"


def _log(run: RunStatus) -> str:
    """Returns the path of the log for a run that a user must look at."""
    return f"log {quote(run.log)}" if run.needs_person and run.log is not None else ""
