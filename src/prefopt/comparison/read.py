"""Reads run folders into records, whatever the state of a run, and even if its files are damaged."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefopt.comparison.log import Log, from_rows, parse_log
from prefopt.comparison.metrics import from_line, from_report, not_finite_in, speed_of
from prefopt.comparison.outcomes import FILE as PAIRS
from prefopt.comparison.outcomes import read_outcomes
from prefopt.comparison.records import DONE, NOT_BEGUN, RUNNING, Measure, Mode, Outcomes, RunRecord, WandbPlace, Wins
from prefopt.comparison.settings import from_typed, read_settings
from prefopt.comparison.thinning import points_for, read_curves
from prefopt.comparison.wins import FILE as ANSWERS
from prefopt.comparison.wins import read_wins
from prefopt.evaluation.decision import Decision
from prefopt.process.parallel import map_in_processes, num_cores
from prefopt.runs.directory import State
from prefopt.runs.files import read_report
from prefopt.runs.find import BEGUN, REPORT, Place, is_closed
from prefopt.runs.provenance import MEASURED
from prefopt.runs.read import Facts, read_facts
from prefopt.storage.lock_file import SILENT_AFTER_S, Life
from prefopt.storage.reading import read_file
from prefopt.tracking.sessions import find_sessions

UNKNOWN = "unknown"
ENDED_EARLY = (State.preempted.value, State.failed.value)
MIN_FOR_POOL = 48
"""Number of runs from which on several processes are faster than one."""
MAX_PROCESSES = 8
Signature = tuple[Any, ...]


class RunReader:
    """Reads runs; a later call reads only those that have changed since."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Signature, RunRecord]] = {}
        """Keyed by the folder of the report: a run that was measured on other data too has several."""

    def read(self, places: Sequence[Place]) -> list[RunRecord]:
        """Returns one record per place, in their order."""
        max_points = points_for(len(places))
        signatures = {place.report: (*_signature(place), max_points) for place in places}
        known = self._known
        stale = [p for p in places if p.report not in known or known[p.report][0] != signatures[p.report]]
        for place, record in zip(stale, _read_all(stale, max_points), strict=True):
            known[place.report] = (signatures[place.report], record)
        return [_with_life(known[place.report][1], place) for place in places]


def _read_all(places: Sequence[Place], max_points: int) -> list[RunRecord]:
    read = partial(read_run, max_points=max_points)
    num_processes = min(num_cores(), MAX_PROCESSES) if len(places) >= MIN_FOR_POOL else 1
    return list(map_in_processes(read, places, num_processes=num_processes, doing="reading the runs"))


def _signature(place: Place) -> Signature:
    return place.name, str(place.changes), str(place.constraint), place.problem, *map(_stamp, _files(place))


def _files(place: Place) -> list[Path]:
    """The files whose times and sizes tell whether a run must be read again."""
    of_report = (place.report / file for file in ("report.json", PAIRS, ANSWERS))
    return [*(place.run.path / file for file in BEGUN), *of_report]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def read_run(place: Place, max_points: int) -> RunRecord:
    """Reads everything that a comparison needs of one run; curves keep at most `max_points` points."""
    run = place.run
    changes = {key: from_typed(value) for key, value in place.changes.items()}
    if place.problem or is_closed(run.path):
        problem = place.problem or "the folder may not be entered"
        return RunRecord(place.name, str(run.path), UNKNOWN, settings=changes, problems=(problem,))
    if not place.has_begun:
        return RunRecord(place.name, str(run.path), NOT_BEGUN, settings=changes)
    problems: list[str] = []
    facts = _read_status(place, problems)
    settings = _read_config(run.config, changes, problems)
    log = _read_log(run.metrics, problems)
    _note_lost_lines(log, facts, problems)
    state = UNKNOWN if facts.state is None else facts.state.value
    is_later = place.evaluation != REPORT
    report = _read_report(place, problems) if state == DONE or is_later else {}
    if is_later:  # measured on other data than the run's own
        measured = _measured_data(report)
        state, settings = DONE if report else state, {**settings, **measured}
        if "data.test" in measured:
            settings.pop("data.held_out", None)  # not what was measured
    if report.get("test"):
        problems.append("measured on test data, which are none any more for a choice that this comparison leads to")
    metrics, measured_at = (from_report(report), None) if report else from_log(log, settings.get("algorithm.name"))
    held_out_data, decision = _held_out_data(report), Decision.from_written(report.get("decision"))
    return RunRecord(
        name=place.name,
        where=str(run.path),
        state=state,
        step=log.last_step,
        settings=settings,
        metrics=metrics,
        not_finite=not_finite_in(report),
        measured_at=measured_at,
        has_report=bool(report),
        decision=None if decision is None else decision.word,
        reason=_reason(report),
        constraint=place.constraint,
        curves=read_curves(log, max_points),
        held_out_data=held_out_data,
        outcomes=_read_outcomes(place, held_out_data, problems) if report else None,
        wins=_read_wins(place, report, problems) if report else None,
        message=facts.message,
        problems=tuple(problems),
        wandb=_wandb_place(run.path, settings),
    )


def _read_status(place: Place, problems: list[str]) -> Facts:
    facts = read_facts(place)
    if facts.state is None:
        problems.append(facts.problem or f"{place.run.status.name} is missing")
    return facts


def _read_log(path: Path, problems: list[str]) -> Log:
    try:
        log = parse_log(read_file(path))
    except FileNotFoundError:
        return from_rows([])
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
        return from_rows([])
    if log.num_damaged:
        lines = "line" if log.num_damaged == 1 else "lines"
        problems.append(f"{path.name} has {log.num_damaged} damaged {lines}, left out")
    return log


def _note_lost_lines(log: Log, facts: Facts, problems: list[str]) -> None:
    """Adds a problem if lines of metrics.jsonl that were there at the last save are gone."""
    expected, step = facts.num_records, facts.step
    found = int((log.columns["step"] <= step).sum()) + log.num_damaged
    if expected is not None and found < expected:
        problems.append(f"metrics.jsonl has lost {expected - found} of its {expected} lines up to step {step}")


def _read_report(place: Place, problems: list[str]) -> dict[str, Any]:
    report, problem = read_report(place.report / "report.json")
    if report is None or problem:
        problems.append(f"{place.report.name}/{problem or 'report.json is missing'}")
    return report or {}


def _read_config(path: Path, changes: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    try:
        return read_settings(path)
    except (OSError, ValueError) as error:
        problems.append(f"config.yaml cannot be read ({getattr(error, 'strerror', None) or error})")
        return changes


def _read_outcomes(place: Place, held_out_data: str | None, problems: list[str]) -> Outcomes | None:
    try:
        return read_outcomes(place.report, held_out_data)
    except (OSError, ValueError) as error:
        problems.append(f"{place.report.name}/{error}")
        return None


def _read_wins(place: Place, report: dict[str, Any], problems: list[str]) -> Wins | None:
    try:
        return read_wins(place.report, report)
    except (OSError, ValueError) as error:
        problems.append(f"{place.report.name}/{error}")
        return None


def from_log(log: Log, algorithm: str | None) -> tuple[dict[str, Measure], int | None]:
    """Returns the metrics of the last held-out evaluation and the speed so far, and the step of that evaluation."""
    measured = log.last(is_held_out=True)
    at = measured.get("step")
    return {**from_line(measured, algorithm), **speed_of(log.last())}, None if at is None else int(at)


def _held_out_data(report: Mapping[str, object]) -> str | None:
    """Returns the digests of the measured rows and of an SFT run's pairs, joined; None if there are none."""
    found: Any = report
    for key in ("provenance", "data", "sha256"):
        found = found.get(key) if isinstance(found, Mapping) else None
    digests = [_text(found.get(key)) for key in MEASURED] if isinstance(found, Mapping) else []
    return " ".join(filter(None, digests)) or None


def _measured_data(report: Mapping[str, object]) -> dict[str, Any]:
    """Returns the settings that name the data of a later evaluation; only its report has them."""
    found = report.get("measured_on")
    return dict(found) if isinstance(found, Mapping) else {}


def _reason(report: Mapping[str, object]) -> str | None:
    verdict = report.get("verdict")
    findings = [item for item in verdict if isinstance(item, dict)] if isinstance(verdict, list) else []
    return next((_text(item.get("finding")) for item in findings if item.get("level") == "bad"), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _wandb_place(run: Path, settings: Mapping[str, object]) -> WandbPlace | None:
    """Returns the place of a run in W&B: online if any of its attempts was online or has been uploaded."""
    sessions = find_sessions(run)
    if not sessions:
        return None
    is_online = any(session.is_online or session.is_marked() for session in sessions)
    return WandbPlace(
        Mode.online if is_online else Mode.offline,
        _text(settings.get("logger.entity")) or os.environ.get("WANDB_ENTITY"),
        _text(settings.get("logger.project")) or "prefopt",
        _text(settings.get("logger.group")),
    )


def _with_life(record: RunRecord, place: Place) -> RunRecord:
    """Marks a run that is queued again after an early end, or whose process is gone though its status says running."""
    if record.state in ENDED_EARLY:
        decision = read_facts(place).decision
        return replace(record, is_queued_again=decision is not None and decision.next == "again")
    if record.state != RUNNING:
        return record
    lock = read_facts(place).lock
    if lock is not None:
        return replace(record, is_abandoned=lock.life is Life.dead)
    stamps = [stamp[0] for file in _files(place) if (stamp := _stamp(file))]  # no lock: has it written lately?
    silent_s = time.time() - max(stamps, default=0) / 1e9
    return replace(record, is_abandoned=silent_s > SILENT_AFTER_S)
