"""One training run: resume where a checkpoint is, train, save the final model."""

import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers.trainer_callback import PrinterCallback

from prefopt.distributed.checkpoint import (
    COMPLETE,
    COUNTERS,
    MANIFEST,
    find_newest,
    is_finished,
    read_counters,
    step_of,
)
from prefopt.distributed.ranks import is_main
from prefopt.errors import UserError
from prefopt.run_directory import RunDirectory
from prefopt.schema import TrainConfig
from prefopt.tracking.metrics import MetricsLog
from prefopt.trainers.callbacks import CheckpointCallback, ConsoleCallback, MetricsCallback, Progressed

logger = logging.getLogger(__name__)

STATE_FILES = (
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "global_step*",
    "latest",
    "zero_to_fp32.py",
    MANIFEST,
    COMPLETE,
    COUNTERS,
)
"""What a checkpoint holds beside the model."""


def train(trainer: Any, config: TrainConfig, run: RunDirectory, log: MetricsLog | None, console: Console) -> None:
    """Trains to the end, from the newest complete checkpoint where there is one, and writes `model/`."""
    found = [find_newest(run.checkpoints) if is_main() else None]
    (checkpoint,) = broadcast_object_list(found)  # one rank looks, all use what it found
    progressed = Progressed(trainer.pairs_after)
    step = 0
    if run.model.is_dir():
        logger.info("resume: training was complete; what is left is the report")
        return
    if checkpoint is not None and is_finished(checkpoint):
        logger.info("resume: the last step was done (%s); its weights become the model", checkpoint)
        copy_model(checkpoint, run)
        return
    if checkpoint is not None:
        if getattr(trainer.args, "sync_ref_model", False):
            raise UserError(
                f"{run.path}: algorithm.sync_ref_model=true cannot be resumed, since checkpoints do not hold the "
                "moved reference. Start afresh with run.overwrite=true."
            )
        counters, step = read_counters(checkpoint), step_of(checkpoint)
        progressed.tokens, progressed.time_s = counters["tokens"], counters["time_s"]
        logger.info("resume: from step %d (%s)", step, checkpoint)
    if log is not None:
        log.cut_after(step)
    trainer.prepare(config, run, console)
    show = ConsoleCallback(console)
    metrics = MetricsCallback(log, progressed, show)
    trainer.remove_callback(PrinterCallback)
    for callback in (metrics, show, CheckpointCallback(run, metrics, config.trainer.keep_checkpoints)):
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        show.close()
    save_model(trainer, run)


def log_evaluation(trainer: Any, metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Ends a trainer's evaluation as transformers does: logs the prefixed metrics, tells callbacks, returns them."""
    prefixed = {f"{prefix}_{name}": value for name, value in metrics.items()}
    trainer.log(dict(prefixed))
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, prefixed)
    trainer.model.train()
    return prefixed


def copy_model(checkpoint: Path, run: RunDirectory) -> None:
    """Makes `model/` from a checkpoint of the last step, as `save_model` would have. Rank 0 works."""
    if is_main():
        partial = run.path / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*STATE_FILES))
        partial.rename(run.model)


def save_model(trainer: Any, run: RunDirectory) -> None:
    """Writes the final model or adapter aside and moves it to `model/` when it is whole. All ranks call it."""
    partial = run.path / "model.partial"
    trainer.save_model(str(partial))
    if is_main():
        shutil.rmtree(run.model, ignore_errors=True)
        partial.rename(run.model)
