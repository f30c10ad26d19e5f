"""Which run another one starts from."""

from dataclasses import dataclass
from pathlib import Path

from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve
from prefopt.runs.directory import RunDirectory

DEPTH = 3
"""Levels of folders from a checkpoint, `<run>/checkpoints/step-<n>`, up to its run, both included."""


@dataclass(frozen=True)
class Parent:
    """The run that a run starts from.

    Attributes:
        name: Its name.
        path: Its folder; None if only its name is known.
        wandb_id: Its id in Weights & Biases; None without one.
    """

    name: str
    path: str | None = None
    wandb_id: str | None = None

    @classmethod
    def of_run(cls, run: RunDirectory) -> "Parent":
        return cls(run.path.resolve().name, str(run.path.resolve()), run.read_wandb_id())


def find_parent(config: TrainConfig) -> Parent | None:
    """The run that `logger.parent` names, else the run in whose folder `model.path` lies, else None."""
    named = config.logger.parent
    if named is None:
        run = _find_run(config.model.path)
        return None if run is None else Parent.of_run(run)
    run = _find_run(named) or _find_run(str(Path(config.run.root) / named))
    return Parent(named) if run is None else Parent.of_run(run)


def _find_run(path: str) -> RunDirectory | None:
    """The run whose folder, model or checkpoint `path` is; None if there is none."""
    try:
        folder = resolve(path).resolve()
    except UserError:  # `prefopt:` with an unknown name
        return None
    if not folder.is_dir():
        return None
    runs = (RunDirectory(above) for above in [folder, *folder.parents][:DEPTH])
    return next((run for run in runs if run.config.is_file() and run.status.is_file()), None)
