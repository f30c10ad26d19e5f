"""Ends a trial of a search early: training reports held-out values to the search, which says if others do better.

The file `slurm/trial.json` in the run's folder, written by `prefopt.sweeps.search ask`, names the trial.
"""

import logging
from pathlib import Path

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.config.step_size import StepSize
from prefopt.distributed import group
from prefopt.distributed.group import during, on_main
from prefopt.process.ranks import is_main
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage.reading import parse_json, read_file
from prefopt.sweeps.definition import TRIAL, Search
from prefopt.sweeps.folder import SweepFolder
from prefopt.tracking.wandb import WandbMirror
from prefopt.training.callbacks import EVAL_PREFIX

logger = logging.getLogger(__name__)


class PrunedError(Exception):
    """A trial ends early, on all ranks, because other trials do better.

    Attributes:
        step: The last optimizer step.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def build_pruning(run: RunDirectory, size: StepSize) -> "list[PruningCallback]":
    """Returns the pruning callback if the run is a trial that may be pruned, else no callback. All ranks call it."""
    path = run.slurm / TRIAL
    return [PruningCallback(run, size)] if on_main(path.is_file) else []


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Reports every held-out evaluation to the search; rank 0 reports, and all ranks get the answer."""

    def __init__(self, run: RunDirectory, size: StepSize) -> None:
        self._run, self._size = run, size
        self._is_over = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: object,
    ) -> None:
        """Reports the metrics, and ends the run if it should be pruned and is not at its last step.

        Raises:
            PrunedError: The run is pruned; raised on all ranks.
        """
        step = state.global_step
        with during("the report to the search", may_take_long=True):
            why = on_main(lambda: self._report(metrics, step * self._size.total))
        if why is not None and step < state.max_steps:
            raise PrunedError(f"pruned at step {step} of {state.max_steps}: {why}", step)

    def _report(self, metrics: dict[str, float], examples: int) -> str | None:
        """Returns why the run should end, or None. An error in here is logged and never ends the run."""
        if self._is_over:
            return None
        try:
            from prefopt.sweeps import study  # imports Optuna, which only searches need

            place = parse_json(read_file(self._run.slurm / TRIAL))
            folder = SweepFolder(Path(place["sweep"]))
            search = Search.read(folder)
            value = metrics[f"{EVAL_PREFIX}{search.logged}"]
            with study.open_study(folder.path, search) as opened:
                is_beaten = study.report_value(opened, place["trial"], value, examples)
        except Exception as error:
            logger.warning("search: its journal cannot be used, so this run goes on unpruned (%s)", error)
            return None
        if is_beaten is None:
            self._is_over = True
            logger.warning("search: trial %d has ended before, so this run is not compared", place["trial"])
        if not is_beaten:
            return None
        best = f"the best 1/{search.reduction_factor} of the trials that came as far"
        return f"its held-out {search.metric}, {value:.4g}, is not in {best}"


def end_pruned(error: PrunedError, run: RunDirectory, mirror: WandbMirror | None, console: Console) -> None:
    """Ends a run in the state `pruned`. All ranks call it."""
    group.stop()
    if is_main():
        run.set_state(State.pruned, step=error.step, message=str(error))
        console.print(f"{run.path}: {error}")
        if mirror is not None:
            mirror.summarise({"state": State.pruned.value})
            mirror.close(0)
