"""Checkpoints on disk: whole or not there, verified before use, kept as long as one is needed.

A checkpoint is written as `checkpoint-<n>` and renamed to `step-<n>` when it is whole: `manifest.json` holds the size
and SHA-256 of every file and what the run was, and `COMPLETE`, written last, that of the manifest. Other names are
leftovers: `checkpoint-*` was never completed, `removed-*` is being deleted, `damaged-*` failed its checks and is kept
for a look.
"""

import json
import logging
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.storage import sealed
from prefopt.storage.files import delete, hash_file, write_json, write_text
from prefopt.storage.sealed import MANIFEST, Digests, read_digests

logger = logging.getLogger(__name__)

PARTIAL_PREFIX = "checkpoint-"
"""How transformers names a checkpoint; with us, one that is still being written."""
PREFIX = "step-"
DAMAGED_PREFIX = "damaged-"
REMOVED_PREFIX = "removed-"
RESHARDED_PREFIX = "resharded-"
COMPLETE = "COMPLETE"
TRAINER_STATE = "trainer_state.json"
FORMAT = 1
LEFT_BEHIND = re.compile(r"\.nfs[0-9a-f]+|\.prefopt_digests\.json")
"""Files that are nobody's: of removed files that are still open on NFS, and digests that earlier versions left beside
weights."""
READ_BY_LOADERS = (
    *(".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"),
    *(".pt", ".pth", ".ckpt", ".pkl"),
)
"""Endings of files that transformers, PEFT, torch or DeepSpeed would load, also of files that were added."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says about the run that wrote it.

    Attributes:
        step: Optimizer steps done.
        num_ranks: Processes that wrote it.
        zero_stage: ZeRO stage, None without DeepSpeed.
        batch_size: Examples per optimizer step over all ranks.
        config: SHA-256 of the identity of the configuration.
        wandb_id: Of the run in Weights & Biases, None without.
        windows: For each rank, the state of its `MetricsWindow`.
        time_s: Seconds of training so far, over all attempts, with evaluations and checkpoints.
        training_s: Those of optimizer steps alone; None in a checkpoint of a version that did not count them.
        evaluation_due: The held-out evaluation of this step was interrupted.
        best: The best value of the watched held-out metric and its step, None if none is watched or seen.
        num_records: Lines of metrics.jsonl up to this step; None in a checkpoint of an earlier version.
        format: Version of the manifest.
    """

    step: int
    num_ranks: int
    zero_stage: int | None
    batch_size: int
    config: str
    wandb_id: str | None
    windows: list[dict[str, Any]]
    time_s: float
    evaluation_due: bool = False
    best: tuple[float, int] | None = None
    training_s: float | None = None
    num_records: int | None = None
    format: int = FORMAT


def list_files(folder: Path) -> dict[str, int]:
    """Size in bytes of each file of a folder that is being written; names are relative to it."""
    no_content = re.compile(f"{re.escape(MANIFEST)}|{COMPLETE}|{LEFT_BEHIND.pattern}")
    files = [path for path in folder.rglob("*") if not no_content.fullmatch(path.name) and path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def seal(partial: Path, facts: CheckpointFacts, digests: Digests) -> Path:
    """Makes a written folder a checkpoint: manifest, COMPLETE, and last the rename to `step-<n>`."""
    write_json(partial / MANIFEST, {"run": asdict(facts), "files": dict(sorted(digests.items()))})
    write_text(partial / COMPLETE, hash_file(partial / MANIFEST) + "\n")
    final = partial.with_name(f"{PREFIX}{facts.step}")
    sealed.publish(partial, final, digests, doomed=_doomed(final))
    return final


def clean(folder: Path) -> None:
    """Removes what an earlier attempt left half-written or half-deleted."""
    for prefix in (PARTIAL_PREFIX, REMOVED_PREFIX, RESHARDED_PREFIX):
        for path in folder.glob(f"{prefix}*"):
            if prefix == PARTIAL_PREFIX:
                logger.warning("checkpoint: %s was never completed; removed", path)
            delete(path)
    for path in _list_named(folder):
        if not (path / COMPLETE).exists():
            set_aside(path, f"{COMPLETE} is missing")


def list_complete(folder: Path) -> list[Path]:
    """The sealed checkpoints, oldest first."""
    return sorted((path for path in _list_named(folder) if (path / COMPLETE).exists()), key=step_of)


def _list_named(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))


def read_manifest(checkpoint: Path) -> tuple[CheckpointFacts, Digests]:
    """What a sealed checkpoint says of itself.

    Raises:
        ValueError: The manifest cannot be read; the message says why.
    """
    try:
        if hash_file(checkpoint / MANIFEST) != (checkpoint / COMPLETE).read_text(encoding="utf-8").strip():
            raise ValueError(f"is not the one that {COMPLETE} tells of")
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        facts = CheckpointFacts(**manifest["run"])
        if facts.format != FORMAT:
            raise ValueError(f"has format {facts.format}, and this version reads {FORMAT}")
        if facts.step != step_of(checkpoint):
            raise ValueError(f"is of step {facts.step}")
        return facts, read_digests(manifest)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST}: {error}") from error


def find_stranger(checkpoint: Path, expected: Digests) -> str | None:
    """Says what is not the checkpoint's own, though a loader might take it, and the way out; None if nothing is.

    A link is not its own either: what it leads to may change after it was looked at.
    """
    own = {MANIFEST, COMPLETE, *expected}
    for folder, folders, files in os.walk(checkpoint):
        for path in map(Path(folder).joinpath, sorted([*folders, *files])):
            if path.is_symlink():
                return f"{path} is a link. Put the file or folder itself there"
            name = str(path.relative_to(checkpoint))
            is_read = name.endswith(READ_BY_LOADERS) and not LEFT_BEHIND.fullmatch(path.name)
            if path.name in files and name not in own and is_read:
                return f"{path} was added, and might be loaded. Remove it: rm {shlex.quote(str(path))}"
    return None


def set_aside(checkpoint: Path, problem: str) -> None:
    """Renames a damaged checkpoint, so that it is not tried again, and says so."""
    aside = checkpoint.with_name(DAMAGED_PREFIX + checkpoint.name)
    sealed.move(checkpoint, aside)
    logger.warning("checkpoint: %s is damaged (%s); set aside as %s", checkpoint, problem, aside.name)


def is_finished(checkpoint: Path, total_steps: int) -> bool:
    """True if training had no step left when the checkpoint was taken."""
    return step_of(checkpoint) >= total_steps


def keep_newest(folder: Path, number: int, best_step: int | None = None) -> None:
    """Removes all complete checkpoints but the newest `number` and the best one."""
    assert number >= 1, "the last good checkpoint stays"
    for checkpoint in list_complete(folder)[:-number]:
        if step_of(checkpoint) != best_step:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint so that a kill in the midst of it leaves none that looks whole."""
    sealed.move(checkpoint, _doomed(checkpoint))
    delete(_doomed(checkpoint))


def _doomed(checkpoint: Path) -> Path:
    """Its name while it is removed."""
    return checkpoint.with_name(REMOVED_PREFIX + checkpoint.name)
