"""Hydra's state of a process, which is set aside while settings are composed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

OF_HYDRA = (GlobalHydra, VersionBase, JobRuntime)
"""What Hydra keeps once per process, and sets anew when it is initialised."""

_composing = threading.RLock()
"""Hydra's parser, store and global state are for one thread at a time."""


@contextmanager
def own_hydra() -> Iterator[None]:
    """Lets the block use Hydra as in a new process; what a caller's own Hydra application holds is put back after it.

    Hydra offers no composition beside an initialised one: `GlobalHydra` refuses to be initialised twice.
    """
    with _composing:
        kept = {kind: Singleton._instances.pop(kind, None) for kind in OF_HYDRA}
        try:
            yield
        finally:
            for kind, instance in kept.items():
                Singleton._instances.pop(kind, None)
                if instance is not None:
                    Singleton._instances[kind] = instance
