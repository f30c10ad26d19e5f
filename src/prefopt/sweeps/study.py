"""The study of a search: Optuna's record of all trials, in a journal to which processes on many nodes can write."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from prefopt.process.errors import UserError
from prefopt.sweeps.definition import Search
from prefopt.sweeps.space import Drawn, Parameter

JOURNAL = "optuna.journal"
"""File in the sweep's folder."""
NAME = "search"
"""Name of the study; it is not that of the folder, which may be renamed."""
TASK = "task"
"""User attribute of a trial: the index of its task in the job array."""
DECISION = "decision"
"""User attribute of a trial: the decision in its report, such as do_not_ship."""
EXCESS = "excess"
"""User attribute of a trial: for each limit that it has to keep, by how much it breaks it; above 0, it may not win."""
UNCHECKED = "unchecked"
"""User attribute of a trial: the limited metrics that its report does not have."""
BLOCK = 4096


class Journal(JournalFileBackend):
    """Optuna's journal, locked by exclusive creation of a file, which also works on NFS from version 3 on.

    A last line that was cut off by a kill or a full disk is removed before the next write, since it would make the
    journal unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._journal = path
        self._exclusive = JournalFileOpenLock(str(path))
        super().__init__(str(path), self._exclusive)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends lines and syncs them to disk."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._exclusive.acquire()
        try:
            with self._journal.open("r+b") as file:
                _cut_torn_line(file)
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._exclusive.release()


def _cut_torn_line(file: IO[bytes]) -> None:
    """Truncates a file after its last line break, and seeks to its end."""
    end = size = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        end = start if found < 0 else start + found + 1
        if found >= 0:
            break
    if end < size:
        file.truncate(end)
    file.seek(end)


@contextmanager
def open_study(folder: Path, search: Search) -> Iterator[optuna.Study]:
    """Opens the study of a search for the block; the first process creates it.

    Args:
        folder: Folder of the sweep.
        search: Definition of the search.

    Raises:
        UserError: The journal cannot be read or written, here or within the block.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    direction = "maximize" if search.maximise else "minimize"
    pruner = (
        optuna.pruners.SuccessiveHalvingPruner(search.min_examples, search.reduction_factor)
        if search.prune
        else optuna.pruners.NopPruner()
    )
    try:
        storage = JournalStorage(Journal(path))
        if not storage.get_all_studies():
            optuna.create_study(storage=storage, study_name=NAME, direction=direction, load_if_exists=True)
        yield optuna.load_study(study_name=NAME, storage=storage, pruner=pruner, sampler=_sampler(search))
    except UserError:
        raise
    except Exception as error:  # a damaged journal raises errors of many types
        raise UserError(f"{path}: cannot be used ({type(error).__name__}: {error}).") from error


def find_trial(study: optuna.Study, task: int) -> FrozenTrial | None:
    """Returns the last trial of a task (earlier ones have failed); None if there is none yet."""
    trials = study.get_trials(deepcopy=False)
    return next((trial for trial in reversed(trials) if trial.user_attrs.get(TASK) == task), None)


def begin_trial(study: optuna.Study, task: int) -> FrozenTrial:
    """Creates and returns a new trial of a task, with nothing drawn yet."""
    trial = study.ask()
    trial.set_user_attr(TASK, task)
    return study.trials[trial.number]


def repeat_trial(study: optuna.Study, failed: FrozenTrial) -> FrozenTrial:
    """Creates and returns a trial with the point of a failed one, which cannot reopen though its run continues."""
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=failed.params,
            distributions=failed.distributions,
            user_attrs=failed.user_attrs,
        )
    )
    repeated = find_trial(study, failed.user_attrs[TASK])
    assert repeated is not None
    return repeated


def draw(study: optuna.Study, trial: FrozenTrial, parameters: Sequence[Parameter], search: Search) -> dict[str, Drawn]:
    """Returns the values of a trial by setting, and draws those that it does not have yet.

    The sampler's seed depends on the trial's number: with one seed, every process would draw the same point.
    """
    if trial.state.is_finished():
        return dict(trial.params)
    study.sampler = _sampler(search, trial.number)
    drawing = Trial(study, trial._trial_id)
    return {parameter.key: _draw_one(drawing, parameter) for parameter in parameters}


def _sampler(search: Search, number: int = 0) -> optuna.samplers.BaseSampler:
    """Returns the sampler for a trial. The study asks it too, when a trial is told, which limits the trial breaks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([search.sampler_seed, number]).generate_state(1)[0]),
            n_startup_trials=search.num_startup_trials,
            constant_liar=True,  # keeps parallel workers from drawing the same point
            constraints_func=_excess_of,
        )


def _excess_of(trial: FrozenTrial) -> list[float]:
    """Returns for each limit by how much a trial breaks it; a pruned trial was not measured, and breaks none."""
    return list(trial.user_attrs.get(EXCESS, {}).values()) or [0.0]


def is_feasible(trial: FrozenTrial) -> bool:
    """Returns whether a trial keeps all limits, so that it may be the best."""
    return all(excess <= 0 for excess in _excess_of(trial))


def _draw_one(trial: Trial, parameter: Parameter) -> Drawn:
    name, low, high, step = parameter.key, parameter.low, parameter.high, parameter.step
    if parameter.choices is not None:
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, step=int(step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=step, log=parameter.log)


def end_trial(
    study: optuna.Study,
    trial: FrozenTrial,
    state: TrialState,
    value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Records how a trial ended; without effect if another process has already done so.

    Args:
        study: The study.
        trial: A trial of it.
        state: How it ended.
        value: Of the searched metric; None unless it is complete.
        attributes: User attributes, such as `DECISION` and `EXCESS`.
    """
    try:
        for name, found in (attributes or {}).items():
            Trial(study, trial._trial_id).set_user_attr(name, found)
        study.tell(trial.number, value, state=state, skip_if_finished=True)
    except optuna.exceptions.UpdateFinishedTrialError:  # another process ended it since the check
        return


def find_best(study: optuna.Study) -> FrozenTrial | None:
    """Returns the best complete trial of those that keep all limits; None if there is none yet."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    feasible = [trial for trial in complete if is_feasible(trial)]
    best = max if study.direction is optuna.study.StudyDirection.MAXIMIZE else min
    return best(feasible, key=lambda trial: trial.value or 0.0) if feasible else None


def report_value(study: optuna.Study, number: int, value: float, examples: int) -> bool | None:
    """Records a held-out value during training, and returns whether the trial should be pruned.

    Args:
        study: Study opened with the search's pruner.
        number: Number of the trial.
        value: Value of the searched metric; NaN loses against everything.
        examples: Steps so far times examples (pairs or rows) per full step. The numbers of trials with different batch
            sizes then coincide, even if the last batch of an epoch is not full.

    Returns:
        True to prune, False to continue; None if the trial has ended already and takes no more values.
    """
    frozen = study.trials[number]
    if frozen.state.is_finished():
        return None
    trial = Trial(study, frozen._trial_id)
    if examples not in frozen.intermediate_values:  # else an earlier attempt has reported it
        trial.report(value, examples)
    return trial.should_prune()
