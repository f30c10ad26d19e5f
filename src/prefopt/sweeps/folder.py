"""The folder of a sweep, whose file `sweep.json` lists its points."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.find import SEARCH, SWEEP, SWEEP_FORMAT, is_sweep, read_sweep
from prefopt.storage.files import write_json
from prefopt.sweeps.points import Point


@dataclass(frozen=True)
class SweepFolder:
    """The folder `<run.root>/<sweep.name>`.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def slurm(self) -> Path:
        """Folder with scripts, logs and tasks of the sweep's jobs."""
        return self.path / "slurm"

    def exists(self) -> bool:
        """Returns whether there is a sweep in this folder."""
        return is_sweep(self.path)

    def write(self, points: Sequence[Point], digest: str, **more: object) -> None:
        """Creates the folder with its sweep.json.

        Args:
            points: All points of the sweep.
            digest: Digest of what the points compute.
            more: Further entries of sweep.json.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        described = {"format": SWEEP_FORMAT, "name": self.name, "digest": digest, **more}
        write_json(self.path / SWEEP, {**described, "points": [asdict(point) for point in points]})

    def read(self) -> dict[str, Any]:
        """Returns the content of sweep.json.

        Raises:
            UserError: There is none, or it has the format of another version.
        """
        return read_sweep(self.path)

    def points(self) -> list[Point]:
        """Returns the points in their order."""
        return [Point(**point) for point in self.read()["points"]]

    def run_of(self, point: Point) -> RunDirectory:
        """Returns the run of a point, which need not have begun."""
        return RunDirectory(self.path / point.name)

    def unfinished(self) -> list[Point]:
        """Returns the points whose runs are not finished."""
        is_finished = is_over if SEARCH in self.read() else is_done
        return [point for point in self.points() if not is_finished(self.run_of(point))]


def is_done(run: RunDirectory) -> bool:
    """Returns whether a run is done and has its final model."""
    return run.read_status().get("state") == State.done.value and run.model.is_dir()


def is_over(run: RunDirectory) -> bool:
    """Returns whether a trial of a search is over: its run is done, was pruned, or diverged."""
    return is_done(run) or run.read_status().get("state") in (State.pruned.value, State.diverged.value)
