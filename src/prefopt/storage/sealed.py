"""Files that can be trusted: brought to the disk, and listed with the digests by which damage is found."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from prefopt.storage.files import hash_file

Digests = dict[str, dict[str, Any]]
"""For each file, relative to its checkpoint: `size` in bytes and `sha256`."""


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


def find_damage(checkpoint: Path, expected: Digests) -> str | None:
    """Says what is wrong with files of a sealed checkpoint; None if they are as they were written."""
    for name, entry in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['size']}"
        if hash_file(path) != entry["sha256"]:
            return f"{name} has another checksum"
    return None


def bring_to_disk(path: Path) -> None:
    """Returns when what was written to a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
