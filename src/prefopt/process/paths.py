"""Files that ship with the package, found the same way from a wheel, an editable install and a checkout."""

import difflib
import os
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError, shorten

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
SCHEME = "prefopt:"
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""What Linux's file systems allow."""


def shipped(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as `conf` or `assets/base_model`.

    In a wheel everything lies inside the package; in a checkout `conf/` and `experiments/` lie at the top level.
    """
    for root in (PACKAGE, CHECKOUT):
        if (found := expand(str(root / relative))).exists():
            return found
    raise UserError(f"{SCHEME}{relative}: prefopt ships no such file. Looked in {PACKAGE} and {CHECKOUT}.")


def resolve(path: str) -> Path:
    """Turns a configured path into a file path: `prefopt:<path>` is shipped, anything else is the user's own."""
    if path.startswith(SCHEME):
        return shipped(path.removeprefix(SCHEME))
    return expand(path)


def is_local(path: str) -> bool:
    """True for a folder of this machine, False for the id of a model or data set on a hub."""
    return path.startswith((SCHEME, "/", ".", "~")) or path.count("/") > 1 or resolve(path).exists()


def describe_missing(path: Path, kind: str) -> str:
    """Says that there is no such `kind`, where it was looked for, and what is there under almost that name."""
    near = _find_near(Path(path.anchor), path.relative_to(path.anchor).parts)
    hint = f" Did you mean {near}?" if near is not None else ""
    return f"no such {kind} (looked for {path.absolute()}).{hint}"


def _find_near(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """What is there under `folder` at the end of names like `parts`, each as it is or as one much like it."""
    if not parts:
        return folder
    if (folder / parts[0]).exists():
        return _find_near(folder / parts[0], parts[1:])
    is_open = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
    near = difflib.get_close_matches(parts[0], sorted(os.listdir(folder)) if is_open else [])
    return next((found for name in near if (found := _find_near(folder / name, parts[1:])) is not None), None)


def places(value: Any) -> list[str]:
    """What a setting of one path or several names, so that two ways to write one place are equal."""
    return [str(resolve(str(name)).resolve()) for name in (value if isinstance(value, list) else [value])]


def expand(path: str) -> Path:
    """The user's own path, with a home folder in place of `~`.

    Raises:
        UserError: There is no such user, or no file can have this name.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: this machine knows no home folder of {Path(path).parts[0]}. Give the path from / on."
        ) from error
    longest = max(map(len, map(os.fsencode, expanded.parts)), default=0)
    if longest > MAX_NAME_BYTES or len(os.fsencode(expanded)) > MAX_PATH_BYTES:
        raise UserError(
            f"{shorten(path)}: no path can be that long: a name has up to {MAX_NAME_BYTES} bytes, and a path "
            f"{MAX_PATH_BYTES:,}. Is the value a path?"
        )
    if "\0" in path:
        raise UserError(f"{path!r}: a path cannot hold a null character.")
    return expanded


def cache_folder() -> Path:
    """Where results are kept that runs share: `$PREFOPT_CACHE`, else `prefopt` in the user's cache folder."""
    chosen = os.environ.get("PREFOPT_CACHE")
    if chosen:
        return expand(chosen)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prefopt"
