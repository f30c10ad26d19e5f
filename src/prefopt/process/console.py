"""The console: prefopt's log lines and progress bars; other packages' loggers show errors only."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prefopt.process.ranks import is_main
from prefopt.process.terminal import Terminal

QUIET = ("datasets", "filelock", "httpx", "urllib3", "fsspec", "torch.distributed")
LINE_EVERY_S = 10.0
UNLIMITED = 10_000
"""A line width in characters that exceeds every terminal's."""


class ConsoleHandler(logging.Handler):
    """Prints log messages on the console, above a progress bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(record.getMessage(), style=style)


def build_console() -> Console:
    """Sets up logging once and returns the console of rank 0; other ranks' consoles are silent."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Terminal(quiet=not is_main(), soft_wrap=True)
    package = logging.getLogger("prefopt")
    package.handlers = [ConsoleHandler(console)]
    package.setLevel(logging.INFO)
    package.propagate = False
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    return console


class FittedProgress(Progress):
    """A progress line that is never cut off: on a narrow terminal, whole columns are left out instead."""

    def __init__(
        self, *columns: ProgressColumn, expendable: Sequence[ProgressColumn], console: Console, **settings: Any
    ) -> None:
        """Sets up the line.

        Args:
            columns: The columns of the line, left to right.
            expendable: Those columns that may be left out, in this order.
            console: Where the line is shown.
            settings: Further arguments of rich's Progress.
        """
        self._all, self._expendable, self._terminal = columns, expendable, console
        super().__init__(*columns, console=console, **settings)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Builds the line anew at each refresh, since the terminal's width may have changed."""
        tasks = list(tasks)
        unlimited = self._terminal.options.update(max_width=UNLIMITED)
        for num_gone in range(len(self._expendable) + 1):
            self.columns = tuple(column for column in self._all if column not in self._expendable[:num_gone])
            table = super().make_tasks_table(tasks)
            if Measurement.get(self._terminal, unlimited, table).maximum <= self._terminal.width:
                break
        return table


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total): it draws a bar on a terminal, else prints a line every `LINE_EVERY_S` s."""
    drawn = BarColumn(bar_width=24)
    columns = [TextColumn(what), drawn, MofNCompleteColumn(), TimeRemainingColumn()]
    is_shown = console.is_terminal
    bar = FittedProgress(*columns, expendable=[drawn], console=console, disable=not is_shown, transient=True)
    task = bar.add_task("", total=None)
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        bar.update(task, completed=done, total=total)
        if not console.is_terminal and time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            console.print(f"{what}: {done}/{total}")

    with bar:
        yield update
