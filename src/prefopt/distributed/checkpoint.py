"""Checkpoints on disk: complete or absent, and verified before use.

A checkpoint is written as `checkpoint-<n>` and renamed to `step-<n>` when it is complete: `manifest.json` holds facts
of the run and the size and SHA-256 of every file; `COMPLETE`, written last, holds the SHA-256 of the manifest. Folders
with other names are left over: `checkpoint-*` was never completed, `removed-*` is being deleted, and `damaged-*`
failed its checks and is kept so that a user can look at it.
"""

import logging
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.storage import sealed
from prefopt.storage.files import delete, hash_file, write_json, write_text
from prefopt.storage.reading import parse_json, read_file, read_text
from prefopt.storage.sealed import MANIFEST, Digests, read_digests

logger = logging.getLogger(__name__)

PARTIAL_PREFIX = "checkpoint-"
"""Prefix of a checkpoint that is being written (transformers gives it to all checkpoints)."""
PREFIX = "step-"
DAMAGED_PREFIX = "damaged-"
REMOVED_PREFIX = "removed-"
RESHARDED_PREFIX = "resharded-"
COMPLETE = "COMPLETE"
TRAINER_STATE = "trainer_state.json"
FORMAT = 1
LEFT_BEHIND = re.compile(r"\.nfs[0-9a-f]+|\.prefopt_digests\.json")
"""Files to ignore: removed ones that are still open on NFS, and digests that earlier versions wrote beside weights."""
READ_BY_LOADERS = (
    *(".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"),
    *(".pt", ".pth", ".ckpt", ".pkl"),
)
"""Endings of files that transformers, PEFT, torch or DeepSpeed would load, even if somebody added them."""


@dataclass(frozen=True)
class CheckpointFacts:
    """Facts that a checkpoint holds about the run that wrote it.

    Attributes:
        step: Optimizer steps done.
        num_ranks: Number of processes that wrote it.
        zero_stage: ZeRO stage; None without DeepSpeed.
        batch_size: Examples per optimizer step over all ranks.
        config: Fingerprint of the configuration (SHA-256).
        wandb_id: The run's id in Weights & Biases; None without one.
        windows: For each rank, the state of its `MetricsWindow`.
        time_s: Seconds of training so far over all attempts, with evaluations and checkpoints.
        training_s: Seconds of optimizer steps alone; None in a checkpoint of a version that did not count them.
        evaluation_due: Whether the held-out evaluation of this step was interrupted.
        best: Best value of the metric `trainer.keep_best` and its step; None if there is none.
        num_records: Lines of metrics.jsonl up to this step; None in a checkpoint of an earlier version.
        ended_early_of: Steps that the run was to have when a callback ended it at this step; None if none did.
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
    ended_early_of: int | None = None
    format: int = FORMAT

    def is_last(self, total_steps: int) -> bool:
        """Returns whether training ended here: at its last step, or early and its length was not raised since."""
        return total_steps <= max(self.step, self.ended_early_of or 0)


def list_files(folder: Path) -> dict[str, int]:
    """Returns the size in bytes of each file in a folder, by relative name, without manifest and files to ignore."""
    no_content = re.compile(f"{re.escape(MANIFEST)}|{COMPLETE}|{LEFT_BEHIND.pattern}")
    files = [path for path in folder.rglob("*") if not no_content.fullmatch(path.name) and path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def seal(partial: Path, facts: CheckpointFacts, digests: Digests) -> Path:
    """Turns a written folder into a checkpoint: writes manifest and COMPLETE, then renames it to `step-<n>`."""
    write_json(partial / MANIFEST, {"run": asdict(facts), "files": dict(sorted(digests.items()))})
    write_text(partial / COMPLETE, hash_file(partial / MANIFEST) + "\n")
    final = partial.with_name(f"{PREFIX}{facts.step}")
    sealed.publish(partial, final, digests, doomed=_doomed(final))
    return final


def clean(folder: Path) -> None:
    """Removes half-written and half-deleted checkpoints of earlier attempts."""
    for prefix in (PARTIAL_PREFIX, REMOVED_PREFIX, RESHARDED_PREFIX):
        for path in folder.glob(f"{prefix}*"):
            if prefix == PARTIAL_PREFIX:
                logger.warning("checkpoint: %s was never completed; removed", path)
            delete(path)
    for path in _list_named(folder):
        if not (path / COMPLETE).exists():
            set_aside(path, f"{COMPLETE} is missing")


def list_complete(folder: Path) -> list[Path]:
    """Lists the complete checkpoints, oldest first."""
    return sorted((path for path in _list_named(folder) if (path / COMPLETE).exists()), key=step_of)


def _list_named(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]


def step_of(checkpoint: Path) -> int:
    """Returns the optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def read_manifest(checkpoint: Path) -> tuple[CheckpointFacts, Digests]:
    """Returns the facts and the digests in the manifest of a checkpoint.

    Raises:
        ValueError: The manifest cannot be read; the message says why.
    """
    try:
        if hash_file(checkpoint / MANIFEST) != read_text(checkpoint / COMPLETE).strip():
            raise ValueError(f"is not the one that {COMPLETE} tells of")
        manifest = parse_json(read_file(checkpoint / MANIFEST))
        facts = CheckpointFacts(**manifest["run"])
        if facts.format != FORMAT:
            raise ValueError(f"has format {facts.format}, and this version reads {FORMAT}")
        if facts.step != step_of(checkpoint):
            raise ValueError(f"is of step {facts.step}")
        return facts, read_digests(manifest)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST}: {error}") from error


def find_stranger(checkpoint: Path, expected: Digests) -> str | None:
    """Finds a file that a loader might read but that is not in the manifest; says what to do. None if there is none.

    Links are refused too: a link's target may change after the check.
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
    """Renames a damaged checkpoint, so that it is not tried again, and logs a warning."""
    aside = checkpoint.with_name(DAMAGED_PREFIX + checkpoint.name)
    sealed.move(checkpoint, aside)
    logger.warning("checkpoint: %s is damaged (%s); set aside as %s", checkpoint, problem, aside.name)


def keep_newest(folder: Path, number: int, best_step: int | None = None) -> None:
    """Removes all complete checkpoints except the newest `number` and the one of `best_step`."""
    assert number >= 1, "the last good checkpoint stays"
    for checkpoint in list_complete(folder)[:-number]:
        if step_of(checkpoint) != best_step:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint. It is renamed first, so that a kill leaves none that looks complete."""
    sealed.move(checkpoint, _doomed(checkpoint))
    delete(_doomed(checkpoint))


def _doomed(checkpoint: Path) -> Path:
    """Returns the path of a checkpoint while it is being removed."""
    return checkpoint.with_name(REMOVED_PREFIX + checkpoint.name)
