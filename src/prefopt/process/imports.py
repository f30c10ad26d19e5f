"""How a command imports what takes seconds: its time counted, its garbage not looked for, trackers left out."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefopt.process import phases

UNUSED = "wandb"
"""TRL and transformers import it where they find it; a run that mirrors to W&B imports it itself."""


@contextmanager
def importing() -> Iterator[None]:
    """Imports in this block are counted as such, and cost less.

    The garbage collector would look through hundreds of thousands of objects that stay: a quarter of the time of the
    imports, half a second in every later full collection, and a second when the process ends. In a process that is
    the command's own they are kept from it for good.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with phases.of(phases.IMPORTS), _left_out(UNUSED):
            yield
    finally:
        if phases.owns_process():
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _left_out(package: str) -> Iterator[None]:
    """Lets a package look as if it were not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python then says that there is none
    try:
        yield
    finally:
        with suppress(KeyError):
            del sys.modules[package]
