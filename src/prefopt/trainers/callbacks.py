"""What happens around the optimizer steps: metrics, console, sealed checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from prefopt.distributed.checkpoint import PARTIAL_PREFIX, keep_newest, seal
from prefopt.distributed.ranks import is_main
from prefopt.run_directory import RunDirectory, State
from prefopt.tracking.metrics import MetricsLog

EVAL_PREFIX = "eval_"
OMITTED = {"epoch", "num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
OMITTED |= {"train_loss"}
"""Logged by transformers; ours are exact across resumes: time_s, pairs, tokens."""


class DivergedError(RuntimeError):
    """The loss or the gradient norm is not finite; the weights of the last checkpoint are good."""


@dataclass
class Progressed:
    """How far a run is, over all its attempts.

    Attributes:
        pairs: Examples (DPO: pairs, SFT: rows) seen after a number of optimizer steps, over all ranks.
        tokens: Tokens (without padding) in the batches of earlier attempts; a pair counts its prompt twice.
        time_s: Seconds of earlier attempts from the start of training, evaluations and checkpoints included.
    """

    pairs: Callable[[int], int]
    tokens: int = 0
    time_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return self.time_s + time.monotonic() - self.started


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes a record per log event and refuses to go on from a loss that is not finite."""

    def __init__(self, log: MetricsLog | None, progressed: Progressed, show: "ConsoleCallback") -> None:
        self._log = log
        self._progressed = progressed
        self._show = show
        self._tokens_now = 0

    @property
    def counters(self) -> dict[str, Any]:
        """What a checkpoint must remember for the records of a resumed run to go on from here."""
        return {"tokens": self._progressed.tokens + self._tokens_now, "time_s": self._progressed.seconds()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progressed.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Logs at every save, so that no average reaches across a checkpoint."""
        if control.should_save:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "train_runtime" in logs:
            return
        is_evaluation = any(key.startswith(EVAL_PREFIX) for key in logs)
        if not is_evaluation:
            self._tokens_now = int(logs.get("num_tokens", 0))
        values = {key.removeprefix(EVAL_PREFIX): value for key, value in logs.items() if key not in OMITTED}
        counters = self.counters
        record = {
            "step": state.global_step,
            "time_s": round(counters["time_s"], 3),
            "pairs": self._progressed.pairs(state.global_step),
            "tokens": counters["tokens"],
            **({"split": "held_out"} if is_evaluation else {}),
            **values,
        }
        if self._log is not None:
            self._log.write(record)
            self._show.record(record, state.max_steps)
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
        if bad and not is_evaluation:
            raise DivergedError(
                f"step {state.global_step}: {' and '.join(bad)} not finite. Lower optim.learning_rate, or look at the "
                "rows of this step; the last checkpoint is good."
            )


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Seals what transformers wrote and keeps the newest complete checkpoints."""

    def __init__(self, run: RunDirectory, metrics: MetricsCallback, keep: int) -> None:
        self._run = run
        self._metrics = metrics
        self._keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not is_main():
            return
        seal(Path(args.output_dir) / f"{PARTIAL_PREFIX}{state.global_step}", self._metrics.counters)
        keep_newest(self._run.checkpoints, self._keep)
        self._run.set_state(State.running, step=state.global_step)


class ConsoleCallback(TrainerCallback):  # type: ignore[misc]
    """A progress bar on a terminal, a line per log event elsewhere. Rank 0 only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not is_main():
            return
        self._first = (time.monotonic(), state.global_step)
        if self._console.is_terminal:
            columns = [TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn()]
            self._progress = Progress(
                *columns, TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(), console=self._console
            )
            self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, numbers="")
            self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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
            self._console.print(f"held-out {record['step']:>5}/{max_steps}  {numbers}", highlight=False)
        elif self._progress is not None:
            self._progress.update(self._task, completed=record["step"], numbers=f"{numbers}  {speed}")
        else:
            self._console.print(
                f"step {record['step']:>9}/{max_steps}  {numbers}  {speed}  ETA {eta}", highlight=False
            )

    def _speed(self, record: dict[str, Any], max_steps: int) -> tuple[str, str]:
        assert self._first is not None, "records come after the start of training"
        started, first_step = self._first
        seconds, steps = time.monotonic() - started, record["step"] - first_step
        if steps <= 0:
            return "", "?"
        per_s = steps * record["pairs"] / max(record["step"], 1) / seconds
        left = int((max_steps - record["step"]) * seconds / steps)
        return f"{per_s:.1f} examples/s", f"{left // 60}:{left % 60:02d}"


SHOWN = (
    ("loss", "loss", ".4f"),
    ("rewards/accuracies", "accuracy", ".3f"),
    ("rewards/margins", "margin", ".3f"),
    ("mean_token_accuracy", "token accuracy", ".3f"),
)


def _numbers(record: dict[str, Any]) -> str:
    is_dpo = "rewards/accuracies" in record
    parts = []
    for key, label, digits in SHOWN:
        if key in record and not (is_dpo and key == "mean_token_accuracy"):
            parts.append(f"{label} {format(record[key], digits)}")
    return "  ".join(parts)
