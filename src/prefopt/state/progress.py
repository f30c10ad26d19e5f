"""Progress of a run: steps done, steps in total, and the time left."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.config.step_size import StepSize
from prefopt.distributed.checkpoint import TRAINER_STATE, list_complete
from prefopt.runs.directory import RunDirectory
from prefopt.runs.files import is_count, is_number
from prefopt.storage.files import read_end, read_last
from prefopt.storage.reading import parse_json, read_file, read_text

STATE_BYTES = 1 << 14
"""Bytes at the end of trainer_state.json, after its log of all steps, that hold `max_steps`."""
MAX_STEPS = re.compile(rb'^  "max_steps": (\d{1,18}),?$', re.MULTILINE)
TRAINER_GROUP = re.compile(r"^trainer:\n((?: .*\n)+)", re.MULTILINE)
SETTING = re.compile(r"^  (\w+): (.{0,40})$", re.MULTILINE)  # no number that is read is longer


@dataclass(frozen=True, slots=True)
class Progress:
    """The last training line of metrics.jsonl.

    Attributes:
        step: Optimizer steps done.
        time_s: Training time over all attempts, seconds.
        loss: Mean training loss since the previous line; None if it was not finite.
        age_s: Seconds since metrics.jsonl was last written.
    """

    step: int
    time_s: float
    loss: float | None
    age_s: float

    @property
    def step_s(self) -> float:
        """Seconds per step, including evaluations and checkpoints."""
        return self.time_s / self.step if self.step else 0.0

    def eta_s(self, total: int) -> float | None:
        """Estimates seconds from now until the last step, from the mean over all steps; None before the first step."""
        if not self.step or not self.time_s:
            return None
        return max(0.0, (total - self.step) * self.step_s - self.age_s)


def read_progress(run: RunDirectory, now: float) -> Progress | None:
    """Returns the progress of a run; None before its first training line. `now` is in seconds since the epoch."""
    line = read_last(run.metrics, _is_training)
    if line is None:
        return None
    try:
        age_s = max(0.0, now - os.stat(run.metrics).st_mtime)
    except OSError:
        age_s = 0.0
    loss: Any = line.get("loss")
    return Progress(line["step"], float(line["time_s"]), float(loss) if is_number(loss) else None, age_s)


def _is_training(line: dict[str, Any]) -> bool:
    return is_count(line.get("step")) and is_number(line.get("time_s")) and "split" not in line


def read_trainer_settings(run: RunDirectory) -> dict[str, str]:
    """Returns the settings of the group `trainer` in config.yaml, as text; empty if there is no such file.

    Reads lines, not YAML: `to_yaml` writes one line per setting, and parsing a thousand YAML files takes seconds.
    """
    try:
        text = read_text(run.config, errors="replace")
    except OSError:
        return {}
    group = TRAINER_GROUP.search(text)
    return dict(SETTING.findall(group[1])) if group is not None else {}


def count_steps(run: RunDirectory, settings: dict[str, str]) -> int | None:
    """Returns the optimizer steps of the whole run; None if they are not known.

    They are `max_steps`, or follow from the number of rows. If batches are planned by tokens or lengths, only a
    checkpoint has the number.

    Args:
        run: The run's folder.
        settings: Result of `read_trainer_settings`.
    """
    planned = settings.get("max_steps", "null")
    if planned.isdecimal():
        return int(planned)
    if settings.get("tokens_per_device") == "null" and settings.get("batch_order") == "random":
        counted = _count_by_rows(run, settings)
        if counted is not None:
            return counted
    return _read_from_checkpoint(run.checkpoints)


def _count_by_rows(run: RunDirectory, settings: dict[str, str]) -> int | None:
    """Counts steps as `DurableTrainer.total_steps` does: rows / rows per step, rounded up in every epoch."""
    try:
        provenance = parse_json(read_file(run.provenance))
        num_rows = provenance["data"]["tokenized"]["train"]["num_kept"]
        per_step = StepSize(**provenance["step_size"]).total
        steps: int = math.ceil(float(settings["num_epochs"]) * math.ceil(num_rows / per_step))
        return steps
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None


def _read_from_checkpoint(folder: Path) -> int | None:
    """Returns `max_steps` of the newest checkpoint; None without one."""
    try:
        newest = list_complete(folder)[-1]
    except (OSError, IndexError):
        return None
    found = MAX_STEPS.search(read_end(newest / TRAINER_STATE, STATE_BYTES)[0])
    return int(found[1]) if found is not None else None
