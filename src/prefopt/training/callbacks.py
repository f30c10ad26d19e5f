"""What happens around the optimizer steps: metrics and console."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.process import phases
from prefopt.process.console import FittedProgress
from prefopt.process.ranks import is_main

if TYPE_CHECKING:
    from prefopt.training.durable import DurableTrainer

EVAL_PREFIX = "eval_"
OMITTED = {"epoch", "num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
OMITTED |= {"train_loss"}
"""Logged by transformers; ours are exact across resumes: time_s, training_s, pairs, tokens."""


class Control(TrainerControl):  # type: ignore[misc]
    """What callbacks ask for. Any of them may end training, and none can take an end back that another one asked for.

    At the last step transformers' own callback ends training, before a user's callbacks are called.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "should_training_stop":
            value = bool(value) or self.should_training_stop
        super().__setattr__(name, value)


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when an optimizer step or an epoch ends, and which epoch begins."""

    def __init__(self, trainer: "DurableTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._trainer.begin()
        phases.turn_into("first_step")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """On several ranks a resumed epoch does not reach the batches through accelerate."""
        self._trainer.batches.set_epoch(int(state.epoch))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._trainer.end_step(control)
        phases.turn_into("training")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.end_epoch(control)


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Makes a record of each log event. Rank 0 only."""

    def __init__(self, trainer: "DurableTrainer", show: "ConsoleCallback") -> None:
        self._trainer = trainer
        self._show = show

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: object,
    ) -> None:
        if not is_main() or "train_runtime" in logs:
            return
        is_evaluation = any(key.startswith(EVAL_PREFIX) for key in logs)
        record = {
            "step": state.global_step,
            "time_s": round(self._trainer.seconds, 3),
            "training_s": round(self._trainer.training_seconds, 3),
            "pairs": self._trainer.rows_after(state.global_step),
            "tokens": self._trainer.num_tokens,
            **({"split": "held_out"} if is_evaluation else {}),
            **{key.removeprefix(EVAL_PREFIX): value for key, value in logs.items() if key not in OMITTED},
        }
        self._trainer.records.write(record)
        self._show.record(record, state.max_steps)


class ConsoleCallback(TrainerCallback):  # type: ignore[misc]
    """A progress bar on a terminal, a line per log event elsewhere. Rank 0 only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: FittedProgress | None = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not is_main():
            return
        self._first = (time.monotonic(), state.global_step)
        if self._console.is_terminal:
            self._progress = _progress_of_training(self._console)
            self._task = self._progress.add_task(
                "", total=state.max_steps, completed=state.global_step, numbers="", speed=""
            )
            self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the progress bar, also when training ends by an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def record(self, record: dict[str, Any], max_steps: int) -> None:
        """Shows one record of the metrics log."""
        speed, eta = self._speed(record, max_steps)
        numbers = _numbers(record)
        if "split" in record:
            self._console.print(f"held-out {record['step']:>5}/{max_steps}  {numbers}")
        elif self._progress is not None:
            self._progress.update(self._task, completed=record["step"], numbers=numbers, speed=speed)
        else:
            self._console.print(f"step {record['step']:>9}/{max_steps}  {numbers}  {speed}  ETA {eta}")

    def _speed(self, record: dict[str, Any], max_steps: int) -> tuple[str, str]:
        assert self._first is not None, "records come after the start of training"
        started, first_step = self._first
        seconds, steps = time.monotonic() - started, record["step"] - first_step
        if steps <= 0:
            return "", "?"
        per_s = record["pairs"] / max(record["training_s"], 1e-3)
        left = int((max_steps - record["step"]) * seconds / steps)
        return f"{per_s:.1f} examples/s", f"{left // 60}:{left % 60:02d}"


def _progress_of_training(console: Console) -> FittedProgress:
    """A line with the step of how many and the time left always; the rest where there is room."""
    bar = BarColumn(bar_width=24)
    numbers, speed = TextColumn("{task.fields[numbers]}"), TextColumn("{task.fields[speed]}")
    columns = [TextColumn("training"), bar, MofNCompleteColumn(), numbers, speed, TimeRemainingColumn()]
    return FittedProgress(*columns, expendable=[bar, speed, numbers], console=console)


SHOWN = (
    ("loss", "loss", "z.4f"),
    ("preference_accuracy", "accuracy", "z.3f"),
    ("rewards/accuracies", "reward acc", "z.3f"),
    ("rewards/margins", "reward margin", "z.3f"),
    ("mean_token_accuracy", "token accuracy", "z.3f"),
)


def _numbers(record: dict[str, Any]) -> str:
    has_rewards = "rewards/accuracies" in record
    parts = []
    for key, label, digits in SHOWN:
        if key in record and not (has_rewards and key == "mean_token_accuracy"):
            parts.append(f"{label} {format(record[key], digits)}")
    return "  ".join(parts)
