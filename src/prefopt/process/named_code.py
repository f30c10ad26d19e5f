"""Code of the user's that a setting names as `module:name`."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError, first_line


def find_code(key: str, name: str) -> Any:
    """Returns what `module:name` leads to; the current folder can be imported from.

    Args:
        key: The setting, for errors.
        name: Its value.

    Raises:
        UserError: The module cannot be imported, or has nothing of that name.
    """
    _see_current_folder()
    module, _, path = name.partition(":")
    try:
        found = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UserError(
            f"{key}={name}: cannot be imported ({type(error).__name__}: {first_line(error)}). Python looks for "
            f'{module} in {os.getcwd()} and among its packages. Try: python -c "import {module}; {module}.{path}"'
        ) from error
    return found


def find_file(name: str) -> Path | None:
    """Returns the file of the module in `module:name`, which is not run; None if there is none.

    Packages that the module is part of are imported, since Python finds it by them; None if one cannot be imported.
    """
    _see_current_folder()
    try:
        spec = find_spec(name.partition(":")[0])
    except Exception:  # importing a package runs its code, which may raise anything
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin is not None else None


def _see_current_folder() -> None:
    """Lets the current folder be imported from, as `python -m` has it; the command `prefopt` has not."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
