"""Finds runs: single ones, the points of a sweep, and the runs in a folder."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from prefopt.config.aliases import nearest
from prefopt.process.errors import UserError, describe
from prefopt.process.terminal import quote
from prefopt.runs.directory import RunDirectory
from prefopt.runs.jobs import JOBS, LOG, Submitted, read_jobs
from prefopt.runs.provenance import PREPARE, SAMPLE
from prefopt.storage.reading import parse_json, read_file

SWEEP = "sweep.json"
SWEEP_FORMAT = 1
SEARCH = "search"
"""Entry of sweep.json that a search has, whose points are drawn."""
CONSTRAINT = "constraint"
"""Entry of sweep.json: key of a metric -> the largest value with which a run may be the best."""
REFERENCE = "reference"
"""Name, in a sweep's folder, of the run that computes what the points share; several have a number appended."""
IS_REFERENCE = re.compile(rf"{REFERENCE}(-\d+)?", re.ASCII)
BEGUN = ("status.json", "config.yaml", "metrics.jsonl")
"""Files that show that a run has begun; any one is enough, even if the run was killed at once."""
TRACES = (*BEGUN, f"slurm/{JOBS}", f"slurm/{LOG}")
"""Files that make a folder a run, even one that was only submitted; any one is enough."""
SAMPLING = "slurm/sample.sh"
"""Script of a stage that samples, which is there before the stage begins."""
REPORT = "report"
MAX_NAMED = 5
"""Most folders that a message names."""


class Kind(Enum):
    """What a run is for."""

    run = "run"
    point = "point"
    """A point of a sweep."""
    trial = "trial"
    """A trial of a search. It may diverge, which is a result too."""
    reference = "reference"
    """A run of `prefopt prepare`, for the points of a sweep or for runs that follow; it has no model of its own."""
    sample = "sample"
    """A stage of a chain that samples: it makes pairs, and no model."""

    @property
    def trains(self) -> bool:
        """Whether it is a run in the narrow sense, which has a model and a report."""
        return self not in (Kind.reference, Kind.sample)


MADE = {PREPARE: Kind.reference, SAMPLE: Kind.sample}


@dataclass(frozen=True, slots=True)
class Place:
    """A run that was found; a point of a sweep need not have begun.

    Attributes:
        run: The run's folder.
        name: Name of the run, unique in its group.
        kind: What the run is for.
        job: The newest job of the run; None if it was never submitted.
        changes: The swept settings of its point, by dotted name, as typed on the command line.
        constraint: The constraint of its sweep: key of a metric -> its largest allowed value.
        evaluation: Name of the folder in it that holds the report: `report`, or that of a later evaluation on
            other data.
        problem: Why nothing in the folder can be read as a run: the folder is that of a sweep whose plan is damaged.
    """

    run: RunDirectory
    name: str
    kind: Kind = Kind.run
    job: Submitted | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    constraint: Mapping[str, float] = field(default_factory=dict)
    evaluation: str = REPORT
    problem: str = ""

    @property
    def report(self) -> Path:
        return self.run.path / self.evaluation

    @property
    def has_begun(self) -> bool:
        return _has_any(self.run.path, BEGUN)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that belong together.

    Attributes:
        title: Name of the group for users.
        path: The sweep or folder that holds the runs; None for runs that were named one by one.
        is_sweep: Whether the runs are points of one sweep, which one command resumes.
        places: The runs; in a sweep runs of other kinds come first, then the points in their order.
        command: Command that submitted the sweep; None if it was not recorded.
    """

    title: str
    path: Path | None
    is_sweep: bool
    places: list[Place]
    command: str | None = None


def find_groups(targets: Sequence[Path], *, others: str = "") -> list[Group]:
    """Finds the runs in run folders, sweeps, and folders that hold either; each run is listed once.

    Args:
        targets: Folders that the user named. A report folder in a run's folder means that run with that report.
        others: Text on what else the user may name, for messages.

    Raises:
        UserError: A folder does not exist or holds no run, or a sweep.json is damaged.
    """
    groups: list[Group] = []
    single: list[Place] = []
    allowed = f"Give folders of runs or sweeps, or one that holds them{others}."
    for target in targets:
        if not target.is_dir():
            raise UserError(f"{target}: no such folder. {allowed}")
        if is_sweep(target):
            groups.append(_read_sweep_group(target))
        elif is_run(target):
            single.append(_place_alone(target))
        elif (target / "report.json").is_file() and is_run(target.resolve().parent):
            single.append(replace(_place_alone(target.resolve().parent), evaluation=target.resolve().name))
        else:
            found = list(_find_in_folder(target))
            if not found:
                raise UserError(f"{target}: holds no runs (no {SWEEP}, and no {BEGUN[0]} in its folders). {allowed}")
            groups += found
    if single:
        groups.insert(0, Group("runs" if len(single) > 1 else single[0].name, None, False, single))
    return _without_repeats(groups)


def find_run(folder: Path) -> RunDirectory:
    """Returns the run in a folder that was given as `run=<folder>`.

    Raises:
        UserError: The folder is no run; the message names similar folders, or the runs in it.
    """
    run = RunDirectory(folder)
    if run.config.is_file():
        return run
    if folder.is_dir():
        runs = [path for path in list_runs(folder)[0] if _kind(path, in_sweep=True).trains]
        if runs:
            more = f", or one of {len(runs) - MAX_NAMED:,} more" if len(runs) > MAX_NAMED else ""
            raise UserError(f"run={folder}: a folder of runs. Give one of them: {_choices(runs[:MAX_NAMED])}{more}")
        raise UserError(f"run={folder}: no run of prefopt here (no config.yaml).")
    siblings = {path.name: path for path in list_runs(folder.parent)[0]} if folder.parent.is_dir() else {}
    near = [siblings[name] for name in nearest(folder.name, siblings)[:MAX_NAMED]]
    raise UserError(f"run={folder}: no such folder." + (f" Did you mean {_choices(near)}" if near else ""))


def find_folders(targets: Sequence[Path]) -> list[Path]:
    """Returns the folders of all runs that targets are or hold, each once; sweep points only if they have begun.

    Raises:
        UserError: A folder does not exist, holds no run, or cannot be read.
    """
    found: dict[Path, Path] = {}
    for target in targets:
        if not target.is_dir():
            raise UserError(f"{target}: no such folder. Give folders of runs or sweeps.")
        runs = _runs_below(target)
        if not runs:
            raise UserError(f"{target}: holds no runs. Give folders of runs or sweeps.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_below(target: Path) -> list[Path]:
    """Returns a run itself; of another folder its runs and those of its folders, such as sweeps."""
    if (is_run(target) or is_closed(target)) and not is_sweep(target):  # a sweep's folder keeps jobs like a run's
        return [target]
    runs = list_runs(target)[0]
    folders = (child for child in sorted(target.iterdir()) if child.is_dir() and not child.name.startswith("."))
    return sorted([*runs, *(run for child in folders if child not in runs for run in list_runs(child)[0])])


def list_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Lists the runs and the sweeps in a folder by name, without hidden ones. An unreadable folder counts as a run.

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
        if is_sweep(child):
            sweeps.append(child)
        elif is_run(child) or is_closed(child):
            runs.append(child)
    return runs, sweeps


def is_run(folder: Path) -> bool:
    """Returns whether a run has begun in a folder, or was submitted there."""
    return _has_any(folder, TRACES)


def is_sweep(folder: Path) -> bool:
    """Returns whether a folder is that of a sweep."""
    return os.path.isfile(f"{folder}/{SWEEP}")


def is_closed(folder: Path) -> bool:
    """Returns whether this user may not read a folder; such a folder is reported and not skipped."""
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Returns the sweep.json of a folder.

    Raises:
        UserError: There is none, or it has the format of another version.
    """
    try:
        content: dict[str, Any] = parse_json(read_file(folder / SWEEP))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no sweep here (no {SWEEP}).") from error
    except OSError as error:
        raise UserError(f"{describe(error, folder / SWEEP)}. Make it readable, or leave this folder out.") from error
    except ValueError as error:
        raise _damaged(folder, error) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != SWEEP_FORMAT:
        raise UserError(f"{folder / SWEEP}: of another version of prefopt (format {version}).")
    return content


def _read_sweep_group(folder: Path) -> Group:
    content = read_sweep(folder)
    changes = _read_changes(folder, content)
    constraint = read_constraint(content)
    own_kind = Kind.trial if SEARCH in content else Kind.point
    jobs = read_jobs(folder, prepare=REFERENCE)
    planned = sorted(name for name in jobs if IS_REFERENCE.fullmatch(name))  # no folder before it begins
    found = [child.name for child in list_runs(folder)[0]]
    others = [name for name in dict.fromkeys([*planned, *found]) if name not in changes]
    places = []
    for name in (*others, *changes):
        run = folder / name
        kind = own_kind if name in changes else _kind(run, in_sweep=True)
        places.append(Place(RunDirectory(run), name, kind, _newest(jobs, run), changes.get(name, {}), constraint))
    newest = max((job for job in jobs.values() if job.command), key=lambda job: job.time, default=None)
    command = newest.command if newest else content.get("command")
    return Group(_name(folder), folder, True, places, command if isinstance(command, str) else None)


def _read_changes(folder: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the points of a sweep in their order: name of the run's folder -> swept settings.

    Raises:
        UserError: The points are damaged, or a name leads out of the sweep's folder.
    """
    try:
        changes = {str(point["name"]): dict(point.get("changes") or {}) for point in content["points"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, error) from error
    stray = next((name for name in changes if not _is_plain(name)), None)
    if stray is not None:
        raise UserError(f"{folder / SWEEP}: {stray!r} is no plain folder name, so it cannot be a run of this sweep.")
    return changes


def read_constraint(content: Mapping[str, Any]) -> dict[str, float]:
    """Returns the constraint in the content of a sweep.json; empty for sweeps of earlier versions."""
    found = content.get(CONSTRAINT)
    return {key: float(limit) for key, limit in found.items()} if isinstance(found, dict) else {}


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / SWEEP}: damaged ({type(error).__name__}: {error}). Submit the sweep again.")


def _find_in_folder(folder: Path) -> Iterator[Group]:
    """Yields the runs of a folder as one group, and each of its sweeps as a group."""
    runs, sweeps = list_runs(folder)
    if runs:
        places = [Place(RunDirectory(run), run.name, _kind(run), _newest({}, run)) for run in runs]
        yield Group(_name(folder), folder, False, places)
    for sweep in sweeps:
        try:
            yield _read_sweep_group(sweep)
        except UserError as error:  # the others are shown all the same
            yield _damaged_group(sweep, str(error))


def _damaged_group(folder: Path, problem: str) -> Group:
    """Returns the runs in the folder of a sweep whose plan is damaged, after the folder itself with the problem."""
    runs = [] if is_closed(folder) else list_runs(folder)[0]
    sweep = Place(RunDirectory(folder), folder.name, problem=problem)
    return Group(_name(folder), folder, False, [sweep, *(Place(RunDirectory(run), run.name) for run in runs)])


def _place_alone(run: Path) -> Place:
    """Returns the place of a run that was named directly; for a point, the sweep's folder knows its jobs."""
    real = run.resolve()
    in_sweep = is_sweep(real.parent)
    jobs = read_jobs(real.parent, prepare=REFERENCE) if in_sweep else {}
    return Place(RunDirectory(run), str(run), _kind(real, in_sweep=in_sweep), _newest(jobs, run))


def _kind(run: Path, *, in_sweep: bool = False) -> Kind:
    """Returns the kind of a run that is no point; the name of a sweep's reference is known before it begins."""
    is_planned = in_sweep and IS_REFERENCE.fullmatch(run.name) is not None
    if is_planned:
        return Kind.reference
    made_by = RunDirectory(run).made_by() or (SAMPLE if os.path.isfile(f"{run}/{SAMPLING}") else "")
    return MADE.get(made_by, Kind.run)


def _newest(jobs: dict[str, Submitted], run: Path) -> Submitted | None:
    """Returns the job that was submitted last for a run, by its sweep or on its own."""
    name = run.name or run.resolve().name
    own = read_jobs(run).values() if os.path.exists(f"{run}/slurm/{JOBS}") else ()
    return max([*own, *filter(None, [jobs.get(name)])], key=lambda job: job.time, default=None)


def _without_repeats(groups: Sequence[Group]) -> list[Group]:
    """Keeps the first of equal entries (same run and report), and drops groups that are left without runs."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for group in groups:
        parents: dict[Path, str] = {}
        places = []
        for place in group.places:
            path = place.run.path
            parent = parents.setdefault(path.parent, os.path.realpath(path.parent))
            is_name = path.name not in ("", "..") and not path.is_symlink()
            real = os.path.join(parent, path.name) if is_name else os.path.realpath(path)
            if (real, place.evaluation) not in seen:
                seen.add((real, place.evaluation))
                places.append(place)
        if places or not group.places:
            kept.append(replace(group, places=places))
    return kept


def _has_any(folder: Path, files: Sequence[str]) -> bool:
    return any(os.path.isfile(f"{folder}/{file}") for file in files)


def _is_plain(name: str) -> bool:
    """Returns whether a name can be a folder directly in the sweep's folder."""
    try:
        return Path(name).name == name and b"\0" not in os.fsencode(name) and name not in ("", "..")
    except UnicodeEncodeError:
        return False


def _name(folder: Path) -> str:
    return folder.resolve().name or str(folder)


def _choices(runs: Sequence[Path]) -> str:
    return " or ".join(f"run={quote(str(run))}" for run in runs)
