"""What a person sees: one console, our log lines on it, other packages' chatter only when it warns."""

import logging
import os
import warnings

from rich.console import Console
from rich.logging import RichHandler

from prefopt.distributed.ranks import is_main

QUIET = ("DeepSpeed", "datasets", "filelock", "httpx", "urllib3", "fsspec", "torch.distributed")


def build_console() -> Console:
    """Sets up logging once and returns the console of rank 0; other ranks' consoles are silent."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    console = Console(quiet=not is_main(), soft_wrap=True)
    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False, markup=False)
    package = logging.getLogger("prefopt")
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    return console
