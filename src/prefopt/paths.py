"""Files that ship with the package, found the same way from a wheel, an editable install and a checkout."""

import os
from pathlib import Path

from prefopt.errors import UserError

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parents[1]
SCHEME = "prefopt:"


def shipped(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as `conf` or `assets/base_model`.

    In a wheel everything lies inside the package; in a checkout `conf/` and `experiments/` lie at the top level.
    """
    for root in (PACKAGE, CHECKOUT):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"{SCHEME}{relative}: prefopt ships no such file. Looked in {PACKAGE} and {CHECKOUT}.")


def resolve(path: str) -> Path:
    """Turns a configured path into a file path: `prefopt:<path>` is shipped, anything else is the user's own."""
    if path.startswith(SCHEME):
        return shipped(path.removeprefix(SCHEME))
    return Path(path).expanduser()


def cache_folder() -> Path:
    """Where results are kept that runs share: `$PREFOPT_CACHE`, else `prefopt` in the user's cache folder."""
    chosen = os.environ.get("PREFOPT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefopt"
