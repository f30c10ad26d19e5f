"""The final model on disk: a folder that transformers or PEFT loads, sealed by the digests of its files.

`manifest.json` in `model/` lists size and SHA-256 of every file. It is written when all files are on the disk, and
before the folder gets its name. A model without manifest cannot be verified: an earlier version of prefopt wrote it,
or a user edited the model and removed the manifest.
"""

import logging
import shlex
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from prefopt.distributed import checkpoint as on_disk
from prefopt.distributed.checkpoint import DAMAGED_PREFIX
from prefopt.distributed.group import barrier, gather, on_main
from prefopt.process.errors import UserError
from prefopt.process.ranks import rank, world_size
from prefopt.runs.directory import RunDirectory
from prefopt.storage import sealed
from prefopt.storage.files import copy_file, write_json
from prefopt.storage.reading import parse_json, read_file
from prefopt.storage.sealed import MANIFEST, Digests

logger = logging.getLogger(__name__)

FORMAT = 1
STATE_FILES = (
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "global_step*",
    "latest",
    "zero_to_*.py",
    on_disk.TRAINER_STATE,
    MANIFEST,
    on_disk.COMPLETE,
)
"""Patterns of the files that a checkpoint holds beside the model."""


def copy_model(checkpoint: Path, folder: Path, *, with_code: bool) -> Digests:
    """Copies the model from a checkpoint, flushes it to the disk, and returns the digests of its files.

    Args:
        checkpoint: Checkpoint of the last step.
        folder: Target folder.
        with_code: Whether to copy Python files, which transformers saves for models with their own code.

    Raises:
        OSError: A file cannot be copied, or the copy differs from the sealed file.
    """
    _, files = on_disk.read_manifest(checkpoint)  # other files in the folder are not part of the checkpoint
    of_model = [n for n in files if not any(fnmatch(Path(n).parts[0], pattern) for pattern in STATE_FILES)]
    wanted = [n for n in of_model if with_code or not n.endswith(".py")]
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(checkpoint / name, folder / name)
    copied = sealed.digest(folder, wanted)
    damaged = [name for name, found in copied.items() if found != files[name]]
    if damaged:
        raise OSError(f"{checkpoint / damaged[0]} is damaged")
    return copied


def seal_model(aside: Path, model: Path, digests: Digests) -> None:
    """Turns a written folder, whose files are on the disk, into the final model."""
    write_json(aside / MANIFEST, {"format": FORMAT, "files": dict(sorted(digests.items()))})
    sealed.publish(aside, model, digests)


def is_sealed(model: Path) -> bool:
    """Returns whether the model has a manifest with the digests of its files."""
    return (model / MANIFEST).exists()


def has_sound_model(run: RunDirectory) -> bool:
    """Returns whether the final model exists and is undamaged; a damaged one is set aside. All ranks call it."""
    if not on_main(run.model.is_dir):
        return False
    damage = _find_damage(run.model)
    if damage is not None:
        on_main(partial(_set_aside, run.model, damage))
    return damage is None


def require_sound_model(run: RunDirectory) -> None:
    """Refuses to measure a model that is not the one that was trained. All ranks call it.

    Raises:
        UserError: The model was damaged or edited; the message has the way out for both.
    """
    damage = _find_damage(run.model)
    if damage is None:
        return
    moved, manifest = shlex.join(["mv", str(run.model), f"{run.model}-damaged"]), run.model / MANIFEST
    raise UserError(
        f"{run.model}: is not what training left there ({damage}). If it was damaged: {moved}; the command that began "
        f"the run then {_where_from(run)}. If it was edited on purpose: rm {shlex.quote(str(manifest))}; it is "
        "measured as it is then, and the report says so."
    )


def _where_from(run: RunDirectory) -> str:
    """Says how the same command gets a final model again, and from which checkpoint."""
    complete, step = on_disk.list_complete(run.checkpoints), run.read_status().get("step")
    if complete and on_disk.step_of(complete[-1]) == step:
        return f"makes it anew from {complete[-1]} and measures it"
    last = f"step {on_disk.step_of(complete[-1])}" if complete else "the beginning"
    return f"trains again from {last}, since there is no checkpoint of step {step}"


def _find_damage(model: Path) -> str | None:
    """Says what is wrong with a model, the same on all ranks; each rank checks a share of its files."""
    if not on_main(partial(is_sealed, model)):
        if rank() == 0:
            logger.warning("%s: has no seal (%s), so it is taken as it is", model, MANIFEST)
        return None
    try:
        expected = sealed.read_digests(parse_json(read_file(model / MANIFEST)))
        names = sorted(expected)[rank() :: world_size()]
        added = (
            name
            for name in on_disk.list_files(model)
            if name not in expected and name.endswith(on_disk.READ_BY_LOADERS)
        )
        damage = next((f"{name} was added" for name in sorted(added)), None)
        damage = damage or sealed.find_damage(model, {name: expected[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = f"{MANIFEST} cannot be read ({error})"
    barrier()
    return next((text for text in gather(damage) if text is not None), None)


def _set_aside(model: Path, damage: str) -> None:
    """Renames the folder to an unused name; it is not deleted, since a user may have worked on it."""
    names = (f"{DAMAGED_PREFIX}{model.name}{number}" for number in ["", *(f"-{n}" for n in range(2, 1000))])
    aside = next(path for name in names if not (path := model.with_name(name)).exists())
    model.rename(aside)
    logger.warning("%s: is not what training left there (%s); set aside as %s, and made anew", model, damage, aside)
