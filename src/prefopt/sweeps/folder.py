"""Folders with runs: a sweep's, where `sweep.json` says which points it has, and others that hold runs and sweeps."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage.files import write_json
from prefopt.sweeps.points import Point

FILE = "sweep.json"
FORMAT = 1
SEARCH = "search"
"""Entry of a sweep whose points are drawn."""
REFERENCE = "reference"
"""Folder, in a sweep's, of the run that computes what the points share; of several with a number behind it."""
IS_REFERENCE = re.compile(rf"{REFERENCE}(-\d+)?", re.ASCII)
TRACES = ("status.json", "config.yaml", "metrics.jsonl", "slurm/jobs.jsonl", "slurm/local.log")
"""Any of these makes a folder a run, even one that was killed as it began, or that has not begun."""


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
        return os.path.isfile(self.path / FILE)

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
        except ValueError as error:
            raise self._damaged(error) from error
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            raise UserError(f"{self.path / FILE}: of another version of prefopt (format {version}).")
        return content

    def read_changes(self) -> dict[str, dict[str, Any]]:
        """The points in their order: name of the run's folder -> the swept settings as one would type them.

        Raises:
            UserError: As `read`, or a name that leads out of this folder.
        """
        try:
            changes = {str(point["name"]): dict(point.get("changes") or {}) for point in self.read()["points"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(error) from error
        stray = next((name for name in changes if not _is_plain(name)), None)
        if stray is not None:
            raise UserError(
                f"{self.path / FILE}: {stray!r} is no plain folder name, so it cannot be a run of this sweep."
            )
        return changes

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.path / FILE}: damaged ({type(error).__name__}: {error}). Submit the sweep again.")

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


def is_run(folder: Path) -> bool:
    """True if a run has begun in a folder, or was submitted there."""
    return any(os.path.isfile(f"{folder}/{trace}") for trace in TRACES)


def is_closed(folder: Path) -> bool:
    """True if this user may not look into a folder: what is in it, nobody can say, but it must not be passed over."""
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK)


def list_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """The runs and the sweeps in a folder, by name; hidden ones are left out. A closed folder counts as a run.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error
    runs: list[Path] = []
    sweeps: list[Path] = []
    for child in (folder / name for name in names):
        if SweepFolder(child).exists():
            sweeps.append(child)
        elif is_run(child) or is_closed(child):
            runs.append(child)
    return runs, sweeps


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a folder in the sweep's."""
    try:
        return Path(name).name == name and b"\0" not in os.fsencode(name) and name not in ("", "..")
    except UnicodeEncodeError:
        return False
