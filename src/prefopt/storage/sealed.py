"""Sealed folders: they are complete or do not exist, and a list of digests shows damage.

A folder is first written under a temporary name beside its final one. Its files are flushed to the disk and hashed,
`manifest.json` lists the digests, and `publish` renames the folder. A damaged folder is not deleted but renamed, so
that a user can look at it.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from prefopt.storage.files import PARTIAL, bring_to_disk, delete, hash_file

MANIFEST = "manifest.json"
DAMAGED = ".damaged"
STALE_S = 3600.0
"""Age in seconds at which a half-written file or folder counts as left behind by a killed process."""
Digests = dict[str, dict[str, Any]]
"""File name relative to its folder -> `size` in bytes and `sha256` (hex)."""


def digest(folder: Path, names: Iterable[str]) -> Digests:
    """Flushes files to the disk and returns their digests."""
    found = {}
    for name in names:
        path = folder / name
        bring_to_disk(path)
        found[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return found


def read_digests(manifest: dict[str, Any]) -> Digests:
    """Returns the digests that a manifest lists.

    Raises:
        ValueError: The manifest names a file outside of its folder.
    """
    digests: Digests = manifest["files"]
    for name in digests:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"names {name!r}, which lies outside of its folder")
    return digests


def find_damage(folder: Path, expected: Digests) -> str | None:
    """Says what is wrong with the files of a sealed folder; None if they are as they were written."""
    for name, entry in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['size']}"
        if hash_file(path) != entry["sha256"]:
            return f"{name} has another checksum"
    return None


def publish(partial: Path, final: Path, names: Iterable[str], *, doomed: Path | None = None) -> None:
    """Flushes the names of a folder's files to the disk, then renames the folder; the new name is on the disk then.

    Args:
        partial: The folder; its files are on the disk already.
        final: The final path.
        names: Names of its files.
        doomed: If given, a folder that exists at `final` is moved to this path and removed.

    Raises:
        OSError: The folder could not be renamed; without `doomed`, perhaps because `final` exists.
    """
    for folder in {partial, *((partial / name).parent for name in names)}:
        bring_to_disk(folder)
    is_replaced = doomed is not None and final.exists()
    if doomed is not None and is_replaced:
        move(final, doomed)
    partial.rename(final)
    bring_to_disk(final.parent)
    if doomed is not None and is_replaced:
        delete(doomed)


def move(path: Path, target: Path) -> None:
    """Renames a file or folder; a file or folder at `target` is removed first."""
    delete(target)
    path.rename(target)


def set_aside(path: Path, aside: Path, log: logging.Logger) -> None:
    """Renames a damaged file or folder, so that it is not read again; logs a warning if that fails."""
    try:
        path.rename(aside)  # not deleted: on a network file system another process may be reading it
    except OSError as error:
        log.warning("%s cannot be set aside (%s)", path, error.strerror or error)


def remove_stale(folder: Path) -> None:
    """Removes half-written files and folders of killed processes from a folder that several processes write to."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):  # its writer has finished, or it belongs to another user
            parts = (partial, *(partial.iterdir() if partial.is_dir() else ()))
            if time.time() - max(path.stat().st_mtime for path in parts) > STALE_S:
                delete(partial)
