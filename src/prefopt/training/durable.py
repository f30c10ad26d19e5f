"""Mixin that gives TRL's trainers batches, metrics, evaluation and checkpoints for long runs on many ranks."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn import Module
from torch.utils.data import DataLoader
from transformers import TrainerControl

from prefopt.data.steps import COUNTS, NO_ROW, ROWS, NumberedRows, NumberingCollator, TokenCounts
from prefopt.distributed.deepspeed import choose_optimizer
from prefopt.distributed.group import agree, during, gather, on_main, raise_on_all
from prefopt.distributed.preemption import Preempted
from prefopt.distributed.saving import CheckpointSaver
from prefopt.evaluation.metrics import logged_metric
from prefopt.models.kernels import FusedLayers, fuse_layers
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main
from prefopt.runs.directory import RunTakenOverError
from prefopt.training.batches import count_examples, plan_batches
from prefopt.training.callbacks import Control
from prefopt.training.checkpointing import Checkpointing
from prefopt.training.context import RunContext
from prefopt.training.deferred import Number, deferred_reads
from prefopt.training.fit import Fit
from prefopt.training.guards import StepGuard
from prefopt.training.held_out import StopEvaluation
from prefopt.training.records import RunRecords
from prefopt.training.rehearsal import rehearse
from prefopt.training.replay import Recorder
from prefopt.training.window import MetricsWindow, OnThisRank

logger = logging.getLogger(__name__)

CONTROL = ("should_training_stop", "should_save", "should_evaluate")
"""Requests of callbacks in transformers' TrainerControl that all ranks must follow together."""


class NothingLeftError(Exception):
    """Only the evaluation after the last step was left to do; no step was left to train."""


class DurableTrainer(Checkpointing):
    """Mixin: put it before a TRL trainer in the bases. A trainer is ready to train when its constructor returns.

    Every row is seen exactly once per epoch. Log lines and held-out metrics are exact means on any number of ranks.
    A run that resumes from a checkpoint gives the same results as one that was never interrupted.

    Attributes:
        run: Settings, folder and stop requests of the run.
        fit: Token budget and gradient checkpointing of a forward.
        layers: The fused layers of the model; None if it has none.
        batches: The batches of an epoch over all ranks.
        window: Metrics since the last log line.
        best: The best value of the metric `trainer.keep_best` so far, and its step; None if there is none.
        evaluation_due: Whether the evaluation after this step was interrupted.
        num_rows: Examples in the current forward, without dummy rows.
        counts: Token counts of the current forward.
        num_tokens: Tokens (without padding) up to the last record, over all ranks; a pair counts its prompt twice.
        has_other_ranks: Whether another number of ranks wrote the checkpoint that this run resumes from.
        to_remove: A folder to remove once training has begun; None if there is none.
        records: Writes metrics.jsonl, rows.jsonl and status.json.
        is_over: Whether the last step was done or a callback ended training, so that no step is left to train.
        stop_reason: Why training stopped on request, so that steps are left to train; None if it did not.
        trl_loss_function: The TRL function that computes loss and metrics; its reads are deferred.
    """

    trl_loss_function: Callable[..., Any]
    fit: Fit
    layers: FusedLayers | None
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    model_wrapped: Any
    control: TrainerControl
    accelerator: Any
    is_deepspeed_enabled: bool
    num_rows: int
    counts: TokenCounts
    optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None

    def __init__(self, *args: object, run: RunContext, **for_trl: object) -> None:
        """Builds TRL's trainer from `args` and `for_trl`, then everything that this class adds.

        Raises:
            UserError: The settings do not work with this model, this data or this device.
        """
        config = run.config
        self.run = run
        self.records = RunRecords(run.directory)
        self.saver = CheckpointSaver(run.directory.checkpoints, config.trainer.keep_checkpoints)
        self.window = MetricsWindow()
        self.best: tuple[float, int] | None = None
        self.evaluation_due = self.has_other_ranks = self.is_over = False
        self.stop_reason: str | None = None
        self.to_remove: Path | None = None
        self.num_tokens, self.time_before_s, self.training_before_s = 0, 0.0, 0.0
        self._start_clock()
        super().__init__(*args, **for_trl)
        self.control = Control()
        self._guard = StepGuard(self.train_dataset["source"], run.directory.checkpoints)
        self.layers = fuse_layers(self.model, config, self.args.device)
        self.equip()
        self.fit = Fit.of(self, config, run.kept_fit)
        self.batches = plan_batches(self, config)
        self.optimizer_cls_and_kwargs = choose_optimizer(config.deepspeed, config.optim)
        rehearse(self, config)

    def equip(self) -> None:
        """Sets up what the algorithm needs beside the model; called when the model is on its device."""

    def describe_needs(self) -> dict[str, Any]:
        """Returns what provenance.json says of the work that `prepare` looks up or does."""
        return {}

    def prepare(self) -> None:
        """Computes what the first step needs; called while the policy still has the weights of `model.path`."""

    def rows_after(self, step: int) -> int:
        """Counts the examples seen after `step` optimizer steps, over all ranks."""
        return count_examples(self, step)

    def get_train_dataloader(self) -> DataLoader[dict[str, object]]:
        """Returns the data loader of this rank's share of the planned batches."""
        args = self.args
        loader: Any = DataLoader(
            NumberedRows(self.train_dataset),  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=NumberingCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        prepared: DataLoader[dict[str, object]] = self.accelerator.prepare(loader)
        return prepared

    def try_rows(self, rows: list[int]) -> None:
        """Runs one forward and backward on these training examples to see if they fit in memory; leaves gradients."""
        batch = self.data_collator(self.train_dataset.__getitems__(rows))
        inputs = self._prepare_inputs(batch)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss: torch.Tensor = self.compute_trial_loss(inputs)  # type: ignore[attr-defined]
        loss.backward()  # type: ignore[no-untyped-call]

    def training_step(self, model: Module, inputs: dict[str, Any], num_items_in_batch: object = None) -> torch.Tensor:
        """Runs one forward and backward; under DeepSpeed, the last one of a step also runs the optimizer step."""
        rows = [row for row in inputs.pop(ROWS) if row != NO_ROW]
        self.num_rows, self.counts = len(rows), inputs.pop(COUNTS)
        with during(f"step {self.state.global_step + 1}"):
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self._guard.note_forward(loss, rows)
        return loss

    def _get_grad_norm(self, model: Module, grad_norm: torch.Tensor | float | None = None) -> torch.Tensor | float:
        """Returns the gradient norm of a step, before the optimizer uses the gradient; raises if it is not finite.

        This is the only place where a step waits for the device.
        """
        norm: torch.Tensor | float = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self._guard.check_gradient(norm, self.state.global_step + 1)
        return norm

    def begin(self) -> None:
        """Starts the clock, checks that DeepSpeed is on if it was asked for, and repeats an interrupted evaluation."""
        self._start_clock()
        self.state.compute_steps(self.args, self.state.max_steps)  # a checkpoint brings its attempt's intervals
        stage = self.run.config.deepspeed.stage
        found = self.model_wrapped.zero_optimization_stage() if self.is_deepspeed_enabled else None
        if found != stage:
            raise UserError(
                f"deepspeed.stage={stage} was asked for, and the run has {found}: see how it was launched."
            )
        if stage in (1, 2):
            self.model_wrapped.optimizer.check_grad_overflow = True  # else, in fp32, DeepSpeed trains on NaN gradients
        if self.to_remove is not None:
            on_main(partial(shutil.rmtree, self.to_remove))
        if self.evaluation_due:
            self._make_up_for_evaluation()

    def _make_up_for_evaluation(self) -> None:
        self.evaluate()
        if self.evaluation_due:  # interrupted again; transformers would train one more step before it stops
            assert self.stop_reason is not None
            raise Preempted(self.stop_reason)
        if self.is_over:  # transformers would train another step before it looks
            raise NothingLeftError

    def end_step(self, control: TrainerControl) -> None:
        """Makes all ranks agree whether to stop; called after every optimizer step.

        Raises:
            DivergedError: A loss of this step is not finite, though its gradient is.
            RunTakenOverError: Another process uses the run's folder.
            UserError: The run's folder is gone.
        """
        step = self.state.global_step
        self.run.stop.note_duration("step", time.monotonic() - self._step_started)
        with during(f"the end of step {step}"):
            is_asked, is_bad, is_lost, is_gone, *flags = agree(
                self.run.stop.requested is not None or self.records.trouble is not None,
                self._guard.has_bad_loss(),
                self.run.directory.find_intruder() is not None,
                self.records.is_gone(),
                *(getattr(control, flag) for flag in CONTROL),
            )
        if is_lost:
            raise RunTakenOverError(self.run.directory.path)
        if is_gone:
            raise_on_all(self.records.refusal())
        if is_bad:
            raise self._guard.diverged(step)
        if self.run.config.trainer.log_rows:
            self._write_rows(step)
        self._guard.end_step()
        self._step_started = time.monotonic()
        self._set_control(control, flags)
        if self.is_over:
            control.should_log = True  # the report takes steps, examples and seconds from the last log line
        elif is_asked:
            self.note_stop()
            self.evaluation_due = bool(control.should_evaluate)
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True

    def end_epoch(self, control: TrainerControl) -> None:
        """Notes an end of training that a callback asked for elsewhere than after a step or an evaluation.

        Called when transformers has left the steps of an epoch, in the midst of it too if it is to stop.
        """
        if self.is_over:
            return
        self._note_end(control)
        if self.is_over:
            control.should_log = True

    def _set_control(self, control: TrainerControl, flags: list[float]) -> None:
        """Does on this rank what a callback asks for on any of them."""
        for flag, is_set in zip(CONTROL, flags, strict=True):
            setattr(control, flag, bool(is_set))
        self._note_end(control)

    def _note_end(self, control: Any) -> None:
        """Ends training for good if this is its last step, whatever callbacks say, or if one of them asks for it.

        The checkpoint that is asked for holds it, so that a run that dies before its model is whole trains no further.
        """
        is_early = control.should_training_stop and self.stop_reason is None
        if is_early or self.state.global_step >= self.state.max_steps:
            self.is_over = control.should_training_stop = control.should_save = True

    def note_stop(self) -> str:
        """Sets `stop_reason` to the reason of a rank that was asked to stop, and returns it. All ranks call it."""
        own = self.records.why_stopped() or self.run.stop.requested
        reason = next(reason for reason in gather(own) if reason is not None)
        logger.warning("stopping on request (%s)", reason)
        self.stop_reason = reason
        return reason

    def _write_rows(self, step: int) -> None:
        rows = sorted(row for share in gather(self._guard.rows) for row in share)
        if is_main():
            self.records.write_rows(step, rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a line; a training line gets the exact means over all examples since the previous one."""
        if "loss" in logs:
            logs.update(self.window.close())
            self.num_tokens = int(logs.pop("num_tokens"))
            self._guard.note_loss(logs["loss"], self.state.global_step)
        super().log(logs, start_time)  # type: ignore[misc]

    def _compute_trl_loss(
        self, model: Module | Recorder, inputs: dict[str, Any], **kwargs: object
    ) -> tuple[torch.Tensor, dict[str, Number]]:
        """Returns TRL's loss of a forward and its metrics on this rank, which are gathered when a line is logged.

        Args:
            model: Called once, with the keyword arguments that TRL gives it.
            inputs: The batch, as TRL expects it.
            kwargs: Further arguments of TRL's `compute_loss`.
        """
        mode, accelerator = "train" if self.model.training else "eval", self.accelerator
        self.accelerator = OnThisRank(accelerator)
        try:
            if self.model.training:
                with deferred_reads(self.trl_loss_function) as reads:
                    loss = super().compute_loss(reads.suspended(model), inputs, **kwargs)  # type: ignore[misc]
            else:
                loss = super().compute_loss(model, inputs, **kwargs)  # type: ignore[misc]
        finally:
            self.accelerator = accelerator
        collected = self._metrics[mode]  # type: ignore[attr-defined]
        metrics = {name: values[-1] for name, values in collected.items() if name != "num_tokens"}
        collected.clear()
        self._total_train_tokens = 0  # `window` counts the tokens instead
        return loss, metrics

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves a whole batch to the device; transformers moves only tensors and casts them to DeepSpeed's dtype."""
        moved: dict[str, Any] = send_to_device(inputs, self.args.device, non_blocking=True)
        return moved

    @phases.of("held_out_evaluation")
    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Logs and returns the held-out metrics: exact means that do not depend on ranks or batch size.

        Raises:
            UserError: A callback asks for them, and nothing is held out.
        """
        assert eval_dataset is None, "held-out examples are given to the constructor"
        if self.eval_dataset is None:
            raise UserError(
                f"trainer.callbacks: one asks to evaluate after step {self.state.global_step}, but nothing is held "
                "out: set data.held_out or data.held_out_fraction > 0."
            )
        self.model.eval()
        try:
            metrics = self.measure_held_out()  # type: ignore[attr-defined]
        except StopEvaluation:
            self.evaluation_due = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        finally:
            self.model.train()
        self.evaluation_due = False
        self.num_tokens = self.window.count_tokens()
        self._note_best(metrics)
        self._step_started = time.monotonic()
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(prefixed))
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args, self.state, self.control, prefixed
        )
        with during("the end of an evaluation"):
            flags = agree(*(getattr(self.control, flag) for flag in CONTROL))
        self._set_control(self.control, flags)
        return prefixed

    def _note_best(self, metrics: dict[str, float]) -> None:
        name = self.run.config.trainer.keep_best
        if name is None:
            return
        value = metrics[name]
        if not math.isfinite(value):
            return
        badness = logged_metric(name, self.run.config.algorithm.rows).badness
        if self.best is None or badness(value) < badness(self.best[0]):
            self.best = value, self.state.global_step
            self.control.should_save = True

    def _determine_best_metric(self, metrics: object, trial: object) -> bool:
        """Returns False: `_note_best` tracks the best metric instead."""
        return False
