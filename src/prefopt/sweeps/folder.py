"""A sweep's folder: `sweep.json` says which runs it has; they lie beside it, each in the folder of its point."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.files import write_json
from prefopt.run_directory import RunDirectory, State
from prefopt.sweeps.points import Point

FILE = "sweep.json"
FORMAT = 1
SEARCH = "search"
"""Entry of a sweep whose points are drawn."""


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
        return (self.path / FILE).is_file()

    def write(self, points: Sequence[Point], digest: str, **more: Any) -> None:
        """Creates the folder.

        Args:
            points: All of the sweep's points.
            digest: Of what they compute.
            more: What else `read` is to return.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        described = {"format": FORMAT, "name": self.name, "digest": digest, **more}
        write_json(self.path / FILE, {**described, "points": [asdict(point) for point in points]})

    def read(self) -> dict[str, Any]:
        """sweep.json.

        Raises:
            UserError: There is none, or it is not one of this version.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: no sweep here (no {FILE}).") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path / FILE}: damaged ({error}). Submit the sweep again.") from error
        if content.get("format") != FORMAT:
            raise UserError(f"{self.path / FILE}: of another version of prefopt (format {content.get('format')}).")
        return content

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
