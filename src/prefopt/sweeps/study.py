"""The memory of a search: Optuna's study, in a journal that processes on many nodes may write to."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
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
"""In the sweep's folder."""
NAME = "search"
"""Of the study; not the folder's, which may be renamed."""
TASK = "task"
"""User attribute of a trial: its place among the sweep's trials, which is its task in the job array."""
DECISION = "decision"
"""User attribute of a trial: what its report has decided, such as do_not_ship."""
BLOCK = 4096


class Journal(JournalFileBackend):
    """Optuna's journal, locked by a file that is created exclusively, which NFS from version 3 on honours.

    A line that a kill or a full disk has cut is removed before the next one is written: with it, nobody could read
    the journal any more.
    """

    def __init__(self, path: Path) -> None:
        self._journal = path
        self._exclusive = JournalFileOpenLock(str(path))
        super().__init__(str(path), self._exclusive)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds lines, on disk before it returns."""
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
    """Goes to the end of a file, without what follows its last line break."""
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
    """The study of a search, made by whoever comes first.

    Args:
        folder: Of the sweep.
        search: What it searches.

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
        yield optuna.load_study(study_name=NAME, storage=storage, pruner=pruner)
    except UserError:
        raise
    except Exception as error:  # a damaged journal shows in many ways
        raise UserError(f"{path}: cannot be used ({type(error).__name__}: {error}).") from error


def find_trial(study: optuna.Study, task: int) -> FrozenTrial | None:
    """The trial of a task, the last one if earlier ones failed; None before there is one."""
    trials = study.get_trials(deepcopy=False)
    return next((trial for trial in reversed(trials) if trial.user_attrs.get(TASK) == task), None)


def begin_trial(study: optuna.Study, task: int) -> FrozenTrial:
    """A new trial, with nothing drawn yet."""
    trial = study.ask()
    trial.set_user_attr(TASK, task)
    return study.trials[trial.number]


def repeat_trial(study: optuna.Study, failed: FrozenTrial) -> FrozenTrial:
    """A new trial at the point of one that failed, whose run goes on; what is told of a trial cannot be taken back."""
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
    """The values of a trial by setting, drawn as far as they have not been.

    Every trial has a sampler of its own, seeded by its number: with one seed every process would draw the same point.
    """
    if trial.state.is_finished():
        return dict(trial.params)
    seed = int(np.random.SeedSequence([search.sampler_seed, trial.number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=search.num_startup_trials,
            constant_liar=True,  # keeps workers at the same time from drawing the same point
        )
    drawing = Trial(study, trial._trial_id)
    return {parameter.key: _draw_one(drawing, parameter) for parameter in parameters}


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
    decision: str | None = None,
) -> None:
    """Tells how a trial ended; without effect if another process has."""
    try:
        if decision is not None:
            Trial(study, trial._trial_id).set_user_attr(DECISION, decision)
        study.tell(trial.number, value, state=state, skip_if_finished=True)
    except optuna.exceptions.UpdateFinishedTrialError:  # between the look and the write
        return


def find_best(study: optuna.Study) -> FrozenTrial | None:
    """The best of the trials that came to their end; None before there is one."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = max if study.direction is optuna.study.StudyDirection.MAXIMIZE else min
    return best(complete, key=lambda trial: trial.value or 0.0) if complete else None


def report_value(study: optuna.Study, number: int, value: float, examples: int) -> bool | None:
    """Tells a held-out value on the way, and returns whether the trial should end because others did better.

    Args:
        study: Opened with the search's pruner.
        number: Of the trial.
        value: Of the searched metric; NaN loses against everything.
        examples: Pairs, or rows, that the steps so far have room for. Trials of different batch sizes meet at the same
            numbers, also where the last batch of an epoch is not full.

    Returns:
        None if the trial was told to have ended; it takes no more values.
    """
    frozen = study.trials[number]
    if frozen.state.is_finished():
        return None
    trial = Trial(study, frozen._trial_id)
    if examples not in frozen.intermediate_values:  # else an attempt before this one came as far
        trial.report(value, examples)
    return trial.should_prune()
