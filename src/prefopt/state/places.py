"""Which runs a user means: single ones, the points of a sweep, and those that a folder holds, with their jobs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.state.records import Group, Kind, Place, Submitted
from prefopt.state.tail import read_objects
from prefopt.sweeps.folder import FILE, IS_REFERENCE, REFERENCE, SEARCH, TRACES, SweepFolder, is_run, list_runs


def find_groups(targets: Sequence[Path]) -> list[Group]:
    """The runs of run folders, of sweeps, and of folders that hold either, each run once.

    Raises:
        UserError: A folder that is not there or that holds no run; a damaged sweep.json.
    """
    groups: list[Group] = []
    single: list[Place] = []
    for target in targets:
        if not target.is_dir():
            raise UserError(f"{target}: no such folder. Give folders of runs or sweeps, or one that holds them.")
        if SweepFolder(target).exists():
            groups.append(_read_sweep(target))
        elif is_run(target):
            single.append(_place_alone(target))
        else:
            found = list(_read_folder(target))
            if not found:
                raise UserError(
                    f"{target}: holds no runs (no {FILE}, and no {TRACES[0]} in it or in its folders). "
                    "Give folders of runs or sweeps, or one that holds them."
                )
            groups += found
    if single:
        groups.insert(0, Group("runs" if len(single) > 1 else single[0].name, None, False, single))
    return _without_repeats(groups)


def read_jobs(folder: Path) -> dict[str, Submitted]:
    """The newest job of each run that was submitted from a folder, by the name of the run's folder."""
    jobs: dict[str, Submitted] = {}
    for line in read_objects(folder / "slurm" / "jobs.jsonl"):
        number, tasks = str(line.get("job", "")), line.get("tasks")
        log = folder / "slurm" / Path(str(line.get("log", ""))).name  # here, wherever the folder was then
        job = Submitted(number, log, str(line.get("submitted", "")), _text(line, "command"))
        if isinstance(tasks, dict):
            for index, run in tasks.items():
                jobs[Path(str(run)).name] = _with_patterns(replace(job, id=f"{number}_{index}"), number, str(index))
        else:
            name = REFERENCE if line.get("kind") == "prepare" and (folder / FILE).exists() else ""
            jobs[name or folder.resolve().name] = _with_patterns(job, number, "")
    return jobs


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _with_patterns(job: Submitted, number: str, index: str) -> Submitted:
    name = job.log.name.replace("%j", number).replace("%A", number).replace("%a", index)
    return replace(job, log=job.log.with_name(name))


def _read_sweep(folder: Path) -> Group:
    sweep = SweepFolder(folder)
    names = sweep.read_changes()
    content = sweep.read()
    own_kind = Kind.trial if SEARCH in content else Kind.point
    jobs = read_jobs(folder)
    planned = sorted(name for name in jobs if IS_REFERENCE.fullmatch(name))  # has no folder before it begins
    found = [child.name for child in list_runs(folder)[0]]
    others = [name for name in dict.fromkeys([*planned, *found]) if name not in names]
    places = []
    for name in (*others, *names):
        kind = own_kind if name in names else Kind.reference if IS_REFERENCE.fullmatch(name) else Kind.run
        places.append(Place(RunDirectory(folder / name), name, kind, _newest(jobs, folder / name)))
    newest = max((job for job in jobs.values() if job.command), key=lambda job: job.time, default=None)
    return Group(_name(folder), folder, True, places, newest.command if newest else _text(content, "command"))


def _read_folder(folder: Path) -> Iterator[Group]:
    """The runs of a folder as one group, and each of its sweeps."""
    runs, sweeps = list_runs(folder)
    if runs:
        places = [Place(RunDirectory(run), run.name, Kind.run, _newest({}, run)) for run in runs]
        yield Group(_name(folder), folder, False, places)
    for sweep in sweeps:
        yield _read_sweep(sweep)


def _place_alone(run: Path) -> Place:
    """A run that was named itself; it may be a point of a sweep, which has its jobs."""
    real = run.resolve()
    in_sweep = SweepFolder(real.parent).exists()
    jobs = read_jobs(real.parent) if in_sweep else {}
    is_reference = in_sweep and IS_REFERENCE.fullmatch(real.name) is not None
    return Place(RunDirectory(run), str(run), Kind.reference if is_reference else Kind.run, _newest(jobs, run))


def _newest(jobs: dict[str, Submitted], run: Path) -> Submitted | None:
    """The job that was submitted last for a run, be it by its sweep or by itself."""
    name = run.name or run.resolve().name
    own = read_jobs(run).values() if os.path.exists(f"{run}/slurm/jobs.jsonl") else ()
    return max([*own, *filter(None, [jobs.get(name)])], key=lambda job: job.time, default=None)


def _name(folder: Path) -> str:
    return folder.resolve().name or str(folder)


def _without_repeats(groups: Sequence[Group]) -> list[Group]:
    """Keeps a run where it is first; a sweep or folder that is left without runs goes."""
    seen: set[str] = set()
    kept = []
    for group in groups:
        parents: dict[Path, str] = {}
        places = []
        for place in group.places:
            path = place.run.path
            parent = parents.setdefault(path.parent, os.path.realpath(path.parent))
            real = os.path.join(parent, path.name) if path.name not in ("", "..") else os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                places.append(place)
        if places or not group.places:
            kept.append(replace(group, places=places))
    return kept
