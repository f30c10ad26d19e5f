"""Preference tuning of open-weight language models, with an honest answer whether it was worth it.

    from prefopt import load_config, train, evaluate

docs/api.md shows them at work. They are imported at first use: `import prefopt` alone loads neither torch nor Hydra.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prefopt.process.version import __version__

if TYPE_CHECKING:
    from prefopt.config.load import load_config
    from prefopt.evaluate import evaluate
    from prefopt.train import train

__all__ = ["__version__", "evaluate", "load_config", "train"]

_MODULES = {"load_config": "prefopt.config.load", "train": "prefopt.train", "evaluate": "prefopt.evaluate"}
"""Function of the API -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


class _Package(ModuleType):
    """Keeps `prefopt.train` and `prefopt.evaluate` functions: an import of the modules of these names would set them.

    The modules are found by `from prefopt.train import main`, `python -m prefopt.train` and `import_module`, as ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
