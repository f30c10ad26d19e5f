"""Mixin of `DurableTrainer`: steps and seconds of a run over all attempts, and the checkpoints that hold them."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from torch.nn import Module
from transformers import TrainerState, TrainingArguments, set_seed

from prefopt.config.load import fingerprint
from prefopt.distributed.checkpoint import CheckpointFacts
from prefopt.distributed.group import gather
from prefopt.distributed.saving import CheckpointSaver
from prefopt.process import phases
from prefopt.process.ranks import is_main, rank, world_size
from prefopt.training.batches import Batches
from prefopt.training.context import RunContext
from prefopt.training.records import RunRecords
from prefopt.training.window import MetricsWindow

logger = logging.getLogger(__name__)


class Checkpointing:
    """Saves and takes up the state of a run; its attributes are those of `DurableTrainer`."""

    run: RunContext
    records: RunRecords
    saver: CheckpointSaver
    window: MetricsWindow
    model: Any
    state: TrainerState
    args: TrainingArguments
    batches: Batches
    best: tuple[float, int] | None
    evaluation_due: bool
    has_other_ranks: bool
    is_over: bool
    to_remove: Path | None
    num_tokens: int
    time_before_s: float
    training_before_s: float
    _started: float
    _step_started: float
    _trained_s: float

    def _start_clock(self) -> None:
        self._started = self._step_started = time.monotonic()
        self._trained_s = phases.trained()

    @property
    def seconds(self) -> float:
        """Seconds of training over all attempts, evaluations and checkpoints included."""
        return self.time_before_s + time.monotonic() - self._started

    @property
    def training_seconds(self) -> float:
        """Seconds of optimizer steps alone over all attempts; throughput is computed from it."""
        return self.training_before_s + phases.trained() - self._trained_s

    def total_steps(self) -> int:
        """Returns the number of optimizer steps of the whole run."""
        per_epoch = math.ceil(len(self.batches) / world_size() / self.args.gradient_accumulation_steps)
        planned = self.args.max_steps
        return int(planned) if planned > 0 else math.ceil(self.args.num_train_epochs * per_epoch)

    def take_up(self, facts: CheckpointFacts, to_remove: Path | None) -> None:
        """Restores from a checkpoint the state that transformers does not save.

        Args:
            facts: The facts in the checkpoint's manifest.
            to_remove: A folder to remove once training has begun.
        """
        self.to_remove = to_remove
        self.window.load(facts.windows, rank=rank(), num_ranks=world_size())
        self.best, self.evaluation_due, self.time_before_s = facts.best, facts.evaluation_due, facts.time_s
        self.training_before_s = facts.time_s if facts.training_s is None else facts.training_s
        self.num_tokens = sum(window["tokens"] for window in facts.windows)
        self.has_other_ranks = facts.num_ranks != world_size()
        self.is_over = facts.is_last(self.total_steps())

    def _save_checkpoint(self, model: Module, trial: object) -> None:
        """Writes a checkpoint on all ranks; if one of them fails, there is none and the log has a warning."""
        begun = time.monotonic()
        self.records.write_waiting()
        if self.saver.save(self, self._describe) and is_main():
            self.records.note_saved(self.state.global_step)
        self.run.stop.note_duration("save", time.monotonic() - begun)
        self._step_started = time.monotonic()

    def _describe(self) -> CheckpointFacts:
        total, step = self.total_steps(), self.state.global_step
        return CheckpointFacts(
            step=step,
            num_ranks=world_size(),
            zero_stage=self.run.config.deepspeed.stage,
            batch_size=self.run.size.total,
            config=fingerprint(self.run.config),
            wandb_id=self.run.directory.read_wandb_id() if is_main() else None,
            windows=gather(self.window.state()),
            time_s=self.seconds,
            training_s=self.training_seconds,
            evaluation_due=self.evaluation_due,
            best=self.best,
            num_records=self.records.num,
            ended_early_of=total if self.is_over and step < total else None,
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Drops tied weights from transformers' warning of missing weights: they were loaded under another name."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        missing = set(load_result.missing_keys)
        loaded = {id(weight) for name, weight in named.items() if name not in missing}
        kept = [name for name in load_result.missing_keys if id(named.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=kept))  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores the random states; if the number of ranks has changed, sets new ones and logs it."""
        if checkpoint is None:
            return
        name = "rng_state.pth" if world_size() == 1 else f"rng_state_{rank()}.pth"
        if (Path(checkpoint) / name).is_file() and not self.has_other_ranks:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
            return
        set_seed((self.run.config.run.seed + self.state.global_step * world_size() + rank()) % 2**32)
        logger.info("resume: the number of ranks has changed, so dropout draws afresh; the order of rows goes on")

    def create_model_card(self, *_: object, **__: object) -> None:
        """Writes no model card: the run directory says where a checkpoint comes from."""
