"""A sweep's folder: `sweep.json` in it says which points it has."""

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
    """`<run.root>/<sweep.name>`.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def slurm(self) -> Path:
        """Scripts, logs and tasks of its jobs."""
        return self.path / "slurm"

    def exists(self) -> bool:
        """True if there is a sweep here."""
        return is_sweep(self.path)

    def write(self, points: Sequence[Point], digest: str, **more: Any) -> None:
        """Creates the folder.

        Args:
            points: All of the sweep's points.
            digest: Of what they compute.
            more: What else `read` is to return.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        described = {"format": SWEEP_FORMAT, "name": self.name, "digest": digest, **more}
        write_json(self.path / SWEEP, {**described, "points": [asdict(point) for point in points]})

    def read(self) -> dict[str, Any]:
        """sweep.json.

        Raises:
            UserError: There is none, or it is not one of this version.
        """
        return read_sweep(self.path)

    def points(self) -> list[Point]:
        """The points in their order."""
        return [Point(**point) for point in self.read()["points"]]

    def run_of(self, point: Point) -> RunDirectory:
        """The run of a point, begun or not."""
        return RunDirectory(self.path / point.name)

    def unfinished(self) -> list[Point]:
        """The points for which something is left to do."""
        is_finished = is_over if SEARCH in self.read() else is_done
        return [point for point in self.points() if not is_finished(self.run_of(point))]


def is_done(run: RunDirectory) -> bool:
    """True if a run has come to its end and has its final model."""
    return run.read_status().get("state") == State.done.value and run.model.is_dir()


def is_over(run: RunDirectory) -> bool:
    """True if nothing is left to do for a trial of a search: its run is done, was pruned, or diverged."""
    return is_done(run) or run.read_status().get("state") in (State.pruned.value, State.diverged.value)
