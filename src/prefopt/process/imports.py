"""Slow imports of a command: timed, without garbage collection, and without W&B unless it is needed."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefopt.process import phases

UNUSED = "wandb"
"""A package that TRL and transformers import if it is installed; a run that mirrors to W&B imports it itself."""


@contextmanager
def importing() -> Iterator[None]:
    """Counts the time of this block as imports, and makes imports in it faster.

    The garbage collector would scan hundreds of thousands of objects that are never freed: a quarter of the import
    time, half a second in every later full collection, and a second when the process ends. In a process that runs one
    command only, these objects are excluded from collection for good.
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
    """Makes a package look uninstalled within the block, unless it is already imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # `import` then raises ModuleNotFoundError
    try:
        yield
    finally:
        with suppress(KeyError):
            del sys.modules[package]
