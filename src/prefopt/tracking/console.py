"""What a person sees: one console, our log lines on it, other packages' chatter only when it warns."""

import logging
import os
import warnings

from rich.console import Console

from prefopt.distributed.ranks import is_main

QUIET = ("datasets", "filelock", "httpx", "urllib3", "fsspec", "torch.distributed")


class ConsoleHandler(logging.Handler):
    """Prints log messages on the console, above a progress bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(record.getMessage(), style=style, markup=False, highlight=False)


def build_console() -> Console:
    """Sets up logging once and returns the console of rank 0; other ranks' consoles are silent."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console(quiet=not is_main(), soft_wrap=True)
    package = logging.getLogger("prefopt")
    package.handlers = [ConsoleHandler(console)]
    package.setLevel(logging.INFO)
    package.propagate = False
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    return console
