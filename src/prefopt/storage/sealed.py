"""Folders that can be trusted: whole or not there, with a list of digests by which damage is found.

One is written beside its place, under a name that says that it is being written. Its files are brought to the disk
and digested, `manifest.json` lists the digests, and `publish` gives the folder its name. What is found damaged is not
deleted but renamed, for a look.
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
"""Age at which what is half-written is taken for the leftover of a killed process."""
Digests = dict[str, dict[str, Any]]
"""For each file, relative to its folder: `size` in bytes and `sha256`."""


def digest(folder: Path, names: Iterable[str]) -> Digests:
    """Brings files to the disk and returns their digests."""
    found = {}
    for name in names:
        path = folder / name
        bring_to_disk(path)
        found[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return found


def read_digests(manifest: dict[str, Any]) -> Digests:
    """The digests that a manifest lists.

    Raises:
        ValueError: It names a file outside of its folder.
    """
    digests: Digests = manifest["files"]
    for name in digests:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"names {name!r}, which lies outside of its folder")
    return digests


def find_damage(folder: Path, expected: Digests) -> str | None:
    """Says what is wrong with files of a sealed folder; None if they are as they were written."""
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
    """Gives a written folder its name, once the names of its files are on the disk; that name is on the disk then.

    Args:
        partial: The folder; its files are on the disk.
        final: Its name.
        names: Its files.
        doomed: Makes room for it: the name of a folder that is there already, while that is removed.

    Raises:
        OSError: It has not got its name; without `doomed`, because another folder may have it.
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
    """Renames a file or folder; what has the name is removed."""
    delete(target)
    path.rename(target)


def set_aside(path: Path, aside: Path, log: logging.Logger) -> None:
    """Renames what is damaged, so that it is not tried again; only warns where that cannot be done."""
    try:
        path.rename(aside)  # not deleted: on a network file system others may read it, soundly, at this moment
    except OSError as error:
        log.warning("%s cannot be set aside (%s)", path, error.strerror or error)


def remove_stale(folder: Path) -> None:
    """Removes what killed processes were writing in a folder that several write to."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):  # its writer has finished, or it is another user's
            parts = (partial, *(partial.iterdir() if partial.is_dir() else ()))
            if time.time() - max(path.stat().st_mtime for path in parts) > STALE_S:
                delete(partial)
