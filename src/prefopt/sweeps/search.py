"""A search's trials: which point a task of the job array gets, and how it ended.

Called by the job script before and after the ranks. Optuna is loaded here, and where a run of a search trains.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from prefopt.config.load import TRAIN, complete
from prefopt.distributed.entry import run_entry
from prefopt.evaluation.metrics import HELD_OUT, TUNED
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.process.terminal import printable
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage.files import write_json
from prefopt.storage.lock_file import find_holder
from prefopt.sweeps import study
from prefopt.sweeps.definition import TRIAL, Search, name_of
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.jobs import Job, Task, write_tasks
from prefopt.sweeps.points import place_in

STOP = "stop"
"""What `prefopt.cluster.attempts` says of a run that is not tried again."""


def main(argv: list[str]) -> None:
    """`ask` or `tell`.

    Raises:
        UserError: No such trial, a point that cannot run, or a journal that cannot be used.
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
    """The run of a task, the same one however often it is asked for, and a line about it.

    Args:
        folder: Of the sweep.
        index: Of the task.

    Raises:
        UserError: No such task, a drawn point that is no valid run, or a journal that cannot be used.
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
            # A run goes on at its own point; what could not begin gets another one.
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
    """Tells how the run of a task ended, if it did, and returns a line about it.

    Args:
        folder: Of the sweep.
        index: Of the task.
        has_failed: Unless it is done or pruned, the run is not tried again.

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
        is_elsewhere = find_holder(run.path) is not None  # what failed is a second start of it
        if (has_failed and not is_elsewhere) or run.read_status().get("state") == State.diverged.value:
            study.end_trial(opened, trial, TrialState.FAIL)
        trial, best = study.find_trial(opened, index), study.find_best(opened)
    assert trial is not None
    value = "" if trial.state is not TrialState.COMPLETE else f", {_describe(trial, search)}"
    found = "" if best is None else f"; best so far {name_of(best.user_attrs[study.TASK])}, {_describe(best, search)}"
    return f"{name}: trial {trial.number} is {trial.state.name.lower()}{value}{found}"


def _describe(trial: FrozenTrial, search: Search) -> str:
    """What a complete trial came to; the decision says more than the metric, which a ruined model may win."""
    decision = trial.user_attrs.get(study.DECISION)
    words = "" if decision is None else f" ({decision.replace('_', ' ')})"
    return f"{search.metric} {trial.value:.4g}{words}"


def _tell_ended(opened: optuna.Study, folder: SweepFolder, search: Search) -> None:
    """Tells of every run that is done or pruned: a kill may have come between its end and the word of it."""
    for trial in opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if study.TASK not in trial.user_attrs:  # a kill came between the trial and its task
            continue
        run = RunDirectory(folder.path / name_of(trial.user_attrs[study.TASK]))
        state = run.read_status().get("state")
        if state == State.pruned.value:
            study.end_trial(opened, trial, TrialState.PRUNED)
        elif state == State.done.value:
            report = run.read_report()
            value = _find_value(report, search.metric)
            end = TrialState.FAIL if value is None else TrialState.COMPLETE
            study.end_trial(opened, trial, end, value, report.get("decision"))


def _find_value(report: dict[str, Any], metric: str) -> float | None:
    """The searched metric; None without a finite one."""
    try:
        value = float(report[HELD_OUT][TUNED][metric]["value"])
    except (KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    run_entry(main)
