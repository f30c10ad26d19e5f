"""What a person sees: one console, our log lines on it, other packages' chatter only when it warns."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefopt.distributed.ranks import is_main
from prefopt.terminal import Terminal

QUIET = ("datasets", "filelock", "httpx", "urllib3", "fsspec", "torch.distributed")


LINE_EVERY_S = 10.0


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


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows work as (done, total): a bar on a terminal, elsewhere a line every `LINE_EVERY_S` seconds."""
    columns = [TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
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
