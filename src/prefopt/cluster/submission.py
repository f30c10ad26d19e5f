"""What is submitted: jobs in their order; and the job of one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.cluster.queued import refuse_queued
from prefopt.config.mixture import paths_of
from prefopt.config.overrides import assign
from prefopt.config.schema import TrainConfig
from prefopt.data.files import HUB, find_files
from prefopt.process.errors import UserError
from prefopt.process.paths import describe_missing, expand, is_local, resolve
from prefopt.runs.directory import RunDirectory
from prefopt.sweeps.jobs import Job, Task

TRAIN = "prefopt.train"


def _nothing(command: str) -> None:
    """Writes nothing: runs and chains need no files besides their scripts."""


@dataclass(frozen=True)
class Submission:
    """Jobs in the order in which they are submitted.

    Attributes:
        folder: Folder of the run or sweep, for `prefopt status`; for a chain, of its last run.
        jobs: The jobs; each may wait for Slurm jobs and for the one before it. Empty if nothing is left to do.
        answer: Message about runs that are over. A dry run still shows the jobs of these if there are no others.
        write: Writes the files that jobs read besides their scripts; its argument is the submitting command.
        is_sweep: True for several runs that can be compared.
    """

    folder: Path
    jobs: list[Job]
    answer: str = ""
    write: Callable[[str], None] = _nothing
    is_sweep: bool = False


def plan_run(
    run: TrainConfig, overrides: Sequence[str], config_dir: str | None, is_dry: bool, after: Sequence[str]
) -> Submission:
    """Plans the job of one run. A run that is over gets a job only in a dry run, which shows it."""
    directory = RunDirectory(RunDirectory.of(run).path.absolute())
    directory.check(run)
    answer = "" if run.run.overwrite else _why_over(run, directory)
    if answer and not is_dry:
        return Submission(directory.path, [], answer)
    refuse_queued(directory.path)
    own = [*overrides, *locate(run, directory), *with_folder(config_dir)]
    job = Job(directory.path.name, directory.path, TRAIN, {0: Task(directory.path, own)}, after=after)
    return Submission(directory.path, [job], answer)


def _why_over(run: TrainConfig, directory: RunDirectory) -> str:
    pruned = directory.why_pruned()
    if pruned is not None:
        return f"{directory.path}: {pruned}. Start it afresh with run.overwrite=true."
    if directory.is_done(run):
        return directory.describe_done(run)
    return ""


def locate(run: TrainConfig, directory: RunDirectory) -> list[str]:
    """Returns overrides with the absolute path of the run's folder, since a node may start in another directory."""
    assert run.run.name is not None
    return [assign("run.root", str(directory.path.parent)), assign("run.name", run.run.name)]


def check_inputs(run: TrainConfig, made: Sequence[Path] = ()) -> None:
    """Refuses a run whose local files are missing; models and data on a hub are checked when it starts.

    Args:
        run: Its settings.
        made: Folders of which the content is only to be made, by earlier stages of a chain.

    Raises:
        UserError: A file is missing; the message names it.
    """
    data, evaluation = run.data, run.evaluation
    for spec in (data.train, data.held_out, data.test, evaluation.pairs, evaluation.neutral_texts):
        for path in paths_of(spec):
            if not str(path).startswith(HUB) and not is_below(str(path), made):
                find_files(str(path))
    path = run.model.path
    if is_local(path) and not is_below(path, made) and not resolve(path).exists():
        raise UserError(f"model.path={path}: {describe_missing(resolve(path), 'folder')}")


def is_below(path: str, folders: Sequence[Path]) -> bool:
    """Returns whether a path leads into one of these folders."""
    return any(Path(path).is_relative_to(folder) for folder in folders)


def with_folder(config_dir: str | None) -> list[str]:
    """Returns the argument that names the user's own config groups, if there are any."""
    return [] if config_dir is None else ["--config-dir", str(expand(config_dir).absolute())]
