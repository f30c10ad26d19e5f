"""Trials of a search: gives a task of the job array its point, and records how it ended.

The job script calls it before and after the ranks. Only this module and the training of a search's run load Optuna.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from prefopt.config.load import TRAIN, complete
from prefopt.distributed.entry import run_entry
from prefopt.evaluation.constraint import values_of
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.metrics import HELD_OUT, TUNED
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.process.terminal import printable
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.files import is_number
from prefopt.runs.find import read_constraint
from prefopt.storage.files import write_json
from prefopt.storage.lock_file import find_holder
from prefopt.sweeps import study
from prefopt.sweeps.definition import TRIAL, Search, name_of
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.jobs import Job, Task, write_tasks
from prefopt.sweeps.points import place_in

REFUSED = "do_not_ship"
LARGEST = 1e9
"""Stands for what is not finite, in a journal that takes numbers alone."""
STOP = "stop"
"""Word of `prefopt.cluster.attempts` for a run that is not tried again."""


def main(argv: list[str]) -> None:
    """Runs the command `ask` or `tell` of the job script.

    Raises:
        UserError: There is no such trial, the drawn point is invalid, or the journal cannot be used.
    """
    parser = argparse.ArgumentParser("prefopt.sweeps.search", description=__doc__)
    parser.add_argument("action", choices=["ask", "tell"])
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("index", type=int, help="of the task")
    parser.add_argument("--next", default="", help="with tell: what prefopt.cluster.attempts has decided")
    options = parser.parse_args(argv)
    folder = SweepFolder(options.folder.absolute())
    if options.action == "ask":
        task, words = ask(folder, options.index)
        write_tasks(Job(folder.name, folder.path, "prefopt.train", {options.index: task}, is_array=True))
    else:
        words = tell(folder, options.index, has_failed=options.next == STOP)
    print(printable(words), flush=True)


def ask(folder: SweepFolder, index: int) -> tuple[Task, str]:
    """Returns the run of a task, the same one at each call, and a line about it for the log.

    Args:
        folder: Folder of the sweep.
        index: Index of the task.

    Raises:
        UserError: There is no such task, the drawn point is no valid run, or the journal cannot be used.
    """
    search = Search.read(folder)
    if not 0 <= index < search.num_trials:
        raise UserError(f"{folder.path}: has {search.num_trials} trials, and none of index {index}.")
    run = RunDirectory(folder.path / name_of(index))
    with study.open_study(folder.path, search) as opened:
        _tell_ended(opened, folder, search)
        trial = study.find_trial(opened, index)
        if trial is None:
            trial = study.begin_trial(opened, index)
        elif trial.state is TrialState.FAIL:
            # A run that has begun continues with its own point; one that could not begin gets a new point.
            has_begun = run.config.exists()
            trial = study.repeat_trial(opened, trial) if has_begun else study.begin_trial(opened, index)
        drawn = study.draw(opened, trial, search.parameters, search)
        changes = [parameter.override(drawn[parameter.key]) for parameter in search.parameters]
        drawn_run = [*search.overrides, *changes]
        overrides = [*drawn_run, *place_in(folder.path, name_of(index), drawn_run)]
        try:
            composed = TRAIN.compose(overrides, search.config_dir)
            complete(composed, Launch(search.num_ranks, search.is_launched))
        except UserError as error:
            study.end_trial(opened, trial, TrialState.FAIL)
            raise UserError(f"{run.path}: drew {', '.join(changes)}, which cannot run: {error}") from error
    if search.prune:
        run.slurm.mkdir(parents=True, exist_ok=True)
        write_json(run.slurm / TRIAL, {"sweep": str(folder.path), "trial": trial.number})
    words = f"{run.path.name}: trial {trial.number} of {folder.path / study.JOURNAL}: {'  '.join(changes)}"
    return Task(run.path, [*overrides, *search.arguments]), words


def tell(folder: SweepFolder, index: int, *, has_failed: bool) -> str:
    """Records in the study how the run of a task ended, if it did, and returns a line about it for the log.

    Args:
        folder: Folder of the sweep.
        index: Index of the task.
        has_failed: The run is not tried again; it counts as failed unless it is done or pruned.

    Raises:
        UserError: The journal cannot be used.
    """
    search = Search.read(folder)
    name = name_of(index)
    with study.open_study(folder.path, search) as opened:
        _tell_ended(opened, folder, search)
        trial = study.find_trial(opened, index)
        if trial is None:
            return f"{name}: has no trial"
        run = RunDirectory(folder.path / name)
        is_elsewhere = find_holder(run.path) is not None  # then the failed attempt was a second start
        if (has_failed and not is_elsewhere) or run.read_status().get("state") == State.diverged.value:
            study.end_trial(opened, trial, TrialState.FAIL)
        trial, best = study.find_trial(opened, index), study.find_best(opened)
    assert trial is not None
    value = "" if trial.state is not TrialState.COMPLETE else f", {_describe(trial, search)}{_describe_limits(trial)}"
    found = (
        "no trial yet that may be the best"
        if best is None
        else f"best so far {name_of(best.user_attrs[study.TASK])}, {_describe(best, search)}"
    )
    return f"{name}: trial {trial.number} is {trial.state.name.lower()}{value}; {found}"


def _describe(trial: FrozenTrial, search: Search) -> str:
    """Returns metric and decision of a complete trial, since even a ruined model may have the best metric."""
    decision = trial.user_attrs.get(study.DECISION)
    words = "" if decision is None else f" ({decision.replace('_', ' ')})"
    return f"{search.metric} {trial.value:.4g}{words}"


def _describe_limits(trial: FrozenTrial) -> str:
    """Returns which limits a trial breaks, so that it cannot be the best, and which could not be checked."""
    broken = [name for name, excess in trial.user_attrs.get(study.EXCESS, {}).items() if excess > 0]
    unchecked = trial.user_attrs.get(study.UNCHECKED, [])
    words = f", cannot be the best: {', '.join(broken)}" if broken else ""
    return words + (f", not measured and so not limited: {', '.join(unchecked)}" if unchecked else "")


def _tell_ended(opened: optuna.Study, folder: SweepFolder, search: Search) -> None:
    """Records the end of every run that is done or pruned: a job may have been killed before it could record it."""
    constraint = read_constraint(folder.read())
    for trial in opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if study.TASK not in trial.user_attrs:  # killed before the trial was given its task
            continue
        run = RunDirectory(folder.path / name_of(trial.user_attrs[study.TASK]))
        state = run.read_status().get("state")
        if state == State.pruned.value:
            study.end_trial(opened, trial, TrialState.PRUNED)
        elif state == State.done.value:
            report = run.read_report()
            value = _find_value(report, search.metric)
            end = TrialState.FAIL if value is None else TrialState.COMPLETE
            study.end_trial(opened, trial, end, value, _judge(report, constraint))


def _judge(report: dict[str, Any], constraint: Mapping[str, float]) -> dict[str, Any]:
    """Returns the user attributes of a trial that say whether it may be the best.

    A report that says `do_not_ship` counts as a broken limit of its own.
    """
    decision = Decision.from_written(report.get("decision"))
    values = values_of(report, constraint)
    excess = {
        f"{key} above {limit:g}": min(values[key], LARGEST) - limit if key in values else 0.0
        for key, limit in constraint.items()
    }
    is_refused = decision is not None and decision.word == REFUSED
    return {
        **({} if decision is None else {study.DECISION: decision.word}),
        study.EXCESS: {**excess, "do not ship": float(is_refused)},
        study.UNCHECKED: [key for key in constraint if key not in values],
    }


def _find_value(report: dict[str, Any], metric: str) -> float | None:
    """Returns the value of the searched metric in a report; None if it is missing or not finite."""
    try:
        value = report[HELD_OUT][TUNED][metric]["value"]
    except (KeyError, TypeError):
        return None
    return float(value) if is_number(value) and math.isfinite(value) else None


if __name__ == "__main__":
    run_entry(main)
