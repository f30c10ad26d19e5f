"""Callbacks of a user's own for runs of several ranks, named by `trainer.callbacks`."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class StopOnRank0AtStep3(TrainerCallback):
    """Asks to stop on rank 0 alone, as many callbacks do."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step == 3:
            control.should_training_stop = True


class FailOnRank1AtStep3(TrainerCallback):
    """Has a mistake that shows on one rank."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero and state.global_step == 3:
            raise ZeroDivisionError("a mistake of the callback")


class StopOnRank0AtTheFirstEvaluation(TrainerCallback):
    """The same after an evaluation."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            control.should_training_stop = True


class EndOnRank0AtStep3AndDieOnce(TrainerCallback):
    """Ends training on rank 0 alone, and lets the attempt die then; that of the next attempt asks for nothing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.is_first = not list(Path(args.output_dir).glob("step-*"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = self.is_first and state.is_world_process_zero and state.global_step == 3

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise RuntimeError("the attempt dies")
