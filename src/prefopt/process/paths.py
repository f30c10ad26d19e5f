"""Paths of shipped files (from a wheel, an editable install or a checkout), of the user's files, and of the cache."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from prefopt.process.errors import UserError, shorten

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
SCHEME = "prefopt:"
TEXT_FILES = (".txt", ".md")
"""Endings by which a setting that is a text, such as a system prompt, names a file that holds it."""
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""Limits of Linux file systems."""


def shipped(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as `conf` or `assets/base_model`.

    In a wheel everything lies inside the package; in a checkout `conf/` and `experiments/` lie at the top level.
    """
    for root in (PACKAGE, CHECKOUT):
        if (found := expand(str(root / relative))).exists():
            return found
    raise UserError(f"{SCHEME}{relative}: prefopt ships no such file. Looked in {PACKAGE} and {CHECKOUT}.")


def resolve(path: str) -> Path:
    """Turns a configured path into a file path: `prefopt:<path>` names a shipped file, any other one of the user."""
    if path.startswith(SCHEME):
        return shipped(path.removeprefix(SCHEME))
    return expand(path)


def find_text_file(given: str) -> Path | None:
    """Returns the file that a setting of a text names, whether it exists or not; None if it is the text itself.

    Raises:
        UserError: It names a file, and no file can have this name.
    """
    return resolve(given) if given.lower().endswith(TEXT_FILES) and "\n" not in given else None


def is_local(path: str) -> bool:
    """True for a folder of this machine, False for the id of a model or data set on a hub."""
    return path.startswith((SCHEME, "/", ".", "~")) or path.count("/") > 1 or resolve(path).exists()


def describe_missing(path: Path, kind: str) -> str:
    """The message that there is no such `kind` of path: where it was looked for, and a similar path that exists."""
    if path.is_symlink():
        return f"no such {kind}: {path.absolute()} is a link to {os.readlink(path)}, where nothing can be found."
    near = _find_near(Path(path.anchor), path.relative_to(path.anchor).parts)
    hint = f" Did you mean {near}?" if near is not None else ""
    return f"no such {kind} (looked for {path.absolute()}).{hint}"


def _find_near(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The existing path below `folder` whose names equal `parts` or are spelled similarly; None if there is none."""
    if not parts:
        return folder
    if (folder / parts[0]).exists():
        return _find_near(folder / parts[0], parts[1:])
    is_open = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
    near = difflib.get_close_matches(parts[0], sorted(os.listdir(folder)) if is_open else [])
    return next((found for name in near if (found := _find_near(folder / name, parts[1:])) is not None), None)


def places(value: object) -> list[str]:
    """The absolute paths in a setting of one path or several, so that two spellings of one path are equal."""
    return [_place(item) for item in (value if isinstance(value, list) else [value])]


def _place(item: object) -> str:
    """An absolute path; of a part of a mixture, with what else is said of it."""
    if not isinstance(item, Mapping):
        return str(resolve(str(item)).resolve())
    rest = sorted((str(key), str(value)) for key, value in item.items() if key != "path")
    return f"{resolve(str(item.get('path'))).resolve()} {rest}"


def expand(path: str) -> Path:
    """A path of the user, with `~` replaced by the home folder.

    Raises:
        UserError: The user in `~user` does not exist, or no file can have this name.
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
    """The folder for results that runs share: `$PREFOPT_CACHE`, else `prefopt` in the user's cache folder."""
    chosen = os.environ.get("PREFOPT_CACHE")
    if chosen:
        return expand(chosen)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prefopt"
