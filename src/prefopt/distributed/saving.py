"""Saves a checkpoint from all ranks. If one rank fails, the checkpoint is removed on all, and training goes on."""

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers.trainer import SCHEDULER_NAME, TRAINING_ARGS_NAME

from prefopt.distributed import checkpoint as on_disk
from prefopt.distributed.checkpoint import PARTIAL_PREFIX, TRAINER_STATE, CheckpointFacts
from prefopt.distributed.group import agree, barrier, during, gather, on_main, raise_on_all
from prefopt.distributed.universal import LATEST, find_bad_tag
from prefopt.distributed.unpickling import find_code, written_as_data
from prefopt.distributed.weights import save_partitioned
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main, rank, world_size
from prefopt.storage import sealed
from prefopt.storage.digests import Digester
from prefopt.storage.files import write_text

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

ROOM = 1.2
"""Free space that a checkpoint needs, as a multiple of the size of the previous one."""
TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "iostream error", "unexpected pos")


class Problems:
    """Keeps the first write error of this rank until all ranks have reached the same point."""

    def __init__(self) -> None:
        self.first: str | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.note(error)
        except RuntimeError as error:  # torch hides the error of the file system
            if not any(words in str(error) for words in TORCH_WRITE_ERRORS):
                raise
            self.note(error, "a file could not be written whole, as on a full disk: ")

    def note(self, error: Exception, what: str = "") -> None:
        told = str(error).strip() or type(error).__name__
        self.first = self.first or what + told.splitlines()[0]

    def agreed(self) -> str | None:
        """Returns the first problem of any rank, the same on all; None if there is none. All ranks call it."""
        if not agree(self.first is not None)[0]:
            return None
        return next(text for text in gather(self.first) if text is not None)


class CheckpointSaver:
    """Writes checkpoints of a run and removes old ones; all ranks call `save` at the same step."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    @phases.of(phases.CHECKPOINTS)
    def save(self, trainer: "Trainer", facts: Callable[[], CheckpointFacts]) -> bool:
        """Writes the checkpoint `step-<n>` and returns whether that worked; if not, logs the reason.

        Args:
            trainer: The trainer, between two optimizer steps.
            facts: Called on every rank, since it may gather; the result on rank 0 is written to the manifest.
        """
        step = trainer.state.global_step
        folder = self._folder / f"{PARTIAL_PREFIX}{step}"
        with during(f"the checkpoint of step {step}", may_take_long=True):
            with Digester(folder) as digester:
                problem = self._write(trainer, folder, digester) or self._seal(folder, facts(), digester)
            if problem is not None:
                if is_main():
                    shutil.rmtree(folder, ignore_errors=True)
                goes_on = (
                    "" if trainer.control.should_training_stop else " Training goes on; the next save tries again."
                )
                logger.warning("checkpoint: step %d could not be saved (%s).%s", step, problem, goes_on)
            barrier()
        phases.save()
        return problem is None

    def _write(self, trainer: "Trainer", folder: Path, digester: Digester) -> str | None:
        problems = Problems()
        with problems.kept():
            if is_main():
                self._require_room()
                shutil.rmtree(folder, ignore_errors=True)
                self._folder.mkdir(exist_ok=True)  # fails if a user has removed the run's folder
                folder.mkdir()
        problem = problems.agreed()
        if problem is not None:
            return problem
        save_weights(trainer, folder, problems)
        barrier()  # rank 0 may write for a long time
        problem = problems.agreed()
        if problem is not None:
            return problem
        with problems.kept():
            if is_main():
                digester.begin(on_disk.list_files(folder))  # hashes weights while optimizer states are written
        with digester.watching():
            self._write_state(trainer, folder, problems)
        barrier()
        return problems.agreed()

    def _write_state(self, trainer: "Trainer", folder: Path, problems: Problems) -> None:
        """Writes the training state besides the weights: optimizer, schedule, random states, trainer."""
        if trainer.is_deepspeed_enabled:
            _save_engine(trainer, folder, problems)
        else:
            with problems.kept():
                trainer._save_optimizer_and_scheduler(str(folder))
        with problems.kept():
            trainer._save_scaler(str(folder))
            trainer._save_rng_state(str(folder))
            if is_main():
                trainer.state.save_to_json(str(folder / TRAINER_STATE))

    def _seal(self, folder: Path, facts: CheckpointFacts, digester: Digester) -> str | None:
        """Hashes the files that no rank has hashed yet, each rank its share; then rank 0 seals the checkpoint."""
        problems = Problems()
        mine: sealed.Digests = {}
        with problems.kept():
            mine = digester.finish()
        seen = gather((on_disk.list_files(folder), set(mine)))  # a shared file system may show files late
        known = {name for _, digested in seen for name in digested}
        sizes = {name: size for listed, _ in seen for name, size in listed.items() if name not in known}
        names = sorted(sizes.items(), key=_largest_first)
        with problems.kept():
            mine |= sealed.digest(folder, [name for name, _ in names[rank() :: world_size()]])
        barrier()
        shares = gather(mine)
        problem = problems.agreed()
        if problem is not None:
            return problem
        with problems.kept():
            if is_main():
                digests = {name: entry for share in shares for name, entry in share.items()}
                on_disk.seal(folder, facts, digests)
                phases.count_checkpoint(sum(entry["size"] for entry in digests.values()))
        problem = problems.agreed()
        if problem is None and is_main():
            try:
                self.rotate(facts)
            except OSError as error:
                logger.warning("checkpoint: an old one could not be removed (%s)", error)
        return problem

    def rotate(self, newest: CheckpointFacts) -> None:
        """Removes old checkpoints, except those to keep (newest and best). Rank 0 only."""
        on_disk.keep_newest(self._folder, self._keep, newest.best[1] if newest.best else None)

    def _require_room(self) -> None:
        complete = on_disk.list_complete(self._folder)
        if not complete:
            return
        needed = int(ROOM * sum(path.stat().st_size for path in complete[-1].rglob("*") if path.is_file()))
        stats = os.statvfs(self._folder)
        free = stats.f_bavail * stats.f_frsize
        if free < needed:
            raise OSError(
                f"{free / 2**20:.0f} MiB are free in {self._folder}, and about {needed / 2**20:.0f} are needed"
            )


def save_weights(trainer: "Trainer", folder: Path, problems: Problems) -> None:
    """Writes the whole model or adapter in Hugging Face format. All ranks call it; rank 0 writes."""
    if not is_partitioned(trainer.model):
        with problems.kept():
            trainer._save(str(folder))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; config.yaml has the settings
        return
    with problems.kept():
        save_partitioned(trainer.model, folder)
    with problems.kept():
        if is_main():
            trainer.processing_class.save_pretrained(str(folder))


def is_partitioned(model: torch.nn.Module) -> bool:
    """Returns whether ZeRO-3 has partitioned the parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def find_newest(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint that is undamaged, the same on all ranks. All ranks call it.

    Rank 0 chooses a checkpoint, each rank checks a share of its files, and damaged checkpoints are set aside.
    """
    on_main(lambda: on_disk.clean(folder))
    while True:
        newest = on_main(lambda: next(reversed(on_disk.list_complete(folder)), None))
        if newest is None:
            return None
        problem = _find_damage(newest, rank(), world_size())
        barrier()
        found = [text for text in gather(problem) if text is not None]
        if not found:
            raise_on_all(_find_forgery(newest, rank(), world_size()))
            return newest
        on_main(partial(_set_aside, newest, found[0]))


def _find_damage(checkpoint: Path, place: int, num_places: int) -> str | None:
    """Says what is wrong with a checkpoint; checks every `num_places`-th file, starting at `place`."""
    try:
        _, expected = on_disk.read_manifest(checkpoint)
        sizes = sorted(((name, entry["size"]) for name, entry in expected.items()), key=_largest_first)
        return sealed.find_damage(checkpoint, {name: expected[name] for name, _ in sizes[place::num_places]})
    except (OSError, ValueError) as error:
        return str(error)


def _find_forgery(checkpoint: Path, place: int, num_places: int) -> UserError | None:
    """Returns an error if a checkpoint would run code or has added files; checks every `num_places`-th file for code.

    The checkpoint is not set aside: its own files are sound, and the previous one would cost the steps in between.
    """
    _, files = on_disk.read_manifest(checkpoint)
    stranger = on_disk.find_stranger(checkpoint, files)
    if stranger is not None:
        return UserError(f"{stranger}; the same command goes on then.")
    found = find_code(checkpoint, sorted(files)[place::num_places])
    if found is None and LATEST in files:
        found = find_bad_tag(checkpoint)
    if found is None:
        return None
    return UserError(
        f"{checkpoint}: {found}. No checkpoint of prefopt holds that: somebody else wrote it. Do not load it "
        f"elsewhere; to go on from the one before, remove it: rm -r {shlex.quote(str(checkpoint))}"
    )


def _set_aside(checkpoint: Path, problem: str) -> None:
    """Sets a checkpoint aside that some rank found damaged, if rank 0 finds it damaged too.

    Raises:
        UserError: Rank 0 finds no damage, so the shared file system is the cause.
    """
    if _find_damage(checkpoint, 0, 1) is None:
        raise UserError(
            f"{checkpoint}: a rank cannot read what rank 0 can ({problem}). All ranks must see the same run.root: "
            "look at the shared file system, and run the same command again."
        )
    on_disk.set_aside(checkpoint, problem)


def _largest_first(named: tuple[str, int]) -> tuple[int, str]:
    """Sort key: dividing files among ranks in this order gives even shares."""
    return -named[1], named[0]


def _save_engine(trainer: "Trainer", folder: Path, problems: Problems) -> None:
    """Writes DeepSpeed's part of a checkpoint. A write error is kept, so that all ranks reach DeepSpeed's barriers."""
    engine, tag = trainer.model_wrapped, f"global_step{trainer.state.global_step}"
    writer, copy_script = engine.checkpoint_engine, engine._copy_recovery_script
    save = writer.save

    def guarded_save(*args: object, **kwargs: object) -> None:
        with problems.kept():
            save(*args, **kwargs)

    def guarded_copy(*args: object, **kwargs: object) -> None:
        with problems.kept():
            copy_script(*args, **kwargs)

    writer.save, engine._copy_recovery_script = guarded_save, guarded_copy
    try:
        is_adapter = isinstance(trainer.model, PeftModel)
        with written_as_data():
            engine.save_checkpoint(str(folder), tag, save_latest=False, exclude_frozen_parameters=is_adapter)
    finally:
        del writer.save, engine._copy_recovery_script
    with problems.kept():
        if is_main():
            write_text(folder / LATEST, tag)
            torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
