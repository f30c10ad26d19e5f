"""Checkpoints that are whole or not there: sealed by a manifest, verified before use."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from prefopt.files import write_json, write_text
from prefopt.tracking.provenance import hash_file

logger = logging.getLogger(__name__)

PARTIAL_PREFIX = "checkpoint-"
"""How transformers names a checkpoint; with us, one that is still being written."""
PREFIX = "step-"
DAMAGED_PREFIX = "damaged-"
MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"
COUNTERS = "counters.json"


def seal(partial: Path, counters: dict[str, Any]) -> Path:
    """Makes a written checkpoint valid: counters, manifest, fsync, COMPLETE, and last the rename to `step-<n>`.

    Args:
        partial: The folder `checkpoint-<n>` as transformers wrote it.
        counters: What the trainer's own state does not hold, such as tokens and seconds so far.
    """
    write_json(partial / COUNTERS, counters)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(partial)): {"size": path.stat().st_size, "sha256": hash_file(path)} for path in files
    }
    for path in files:
        _fsync(path)
    write_json(partial / MANIFEST, manifest)
    write_text(partial / COMPLETE, "")
    final = partial.with_name(PREFIX + partial.name.removeprefix(PARTIAL_PREFIX))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _fsync(final.parent)
    return final


def find_newest(folder: Path) -> Path | None:
    """Returns the newest complete, undamaged checkpoint; sets damaged ones aside and removes partial ones."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        logger.warning("checkpoint: %s was never completed; removed", partial)
        shutil.rmtree(partial)
    for checkpoint in reversed(list_complete(folder)):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint
        aside = checkpoint.with_name(DAMAGED_PREFIX + checkpoint.name)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logger.warning("checkpoint: %s is damaged (%s); set aside as %s", checkpoint, problem, aside.name)
    return None


def list_complete(folder: Path) -> list[Path]:
    """The sealed checkpoints, oldest first."""
    return sorted((p for p in folder.glob(f"{PREFIX}*") if (p / COMPLETE).exists()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))


def is_finished(checkpoint: Path) -> bool:
    """True if training had no step left when the checkpoint was taken."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def read_counters(checkpoint: Path) -> dict[str, Any]:
    counters: dict[str, Any] = json.loads((checkpoint / COUNTERS).read_text(encoding="utf-8"))
    return counters


def find_damage(checkpoint: Path) -> str | None:
    """Says what is wrong with a sealed checkpoint; None if all files are as they were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if hash_file(path) != expected["sha256"]:
            return f"{name} has another checksum"
    return None


def keep_newest(folder: Path, number: int) -> None:
    """Removes all complete checkpoints but the newest `number`."""
    for checkpoint in list_complete(folder)[:-number]:
        shutil.rmtree(checkpoint)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
