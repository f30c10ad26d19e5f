"""One training run: resumes from a checkpoint if there is one, trains, and saves the final model."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from prefopt.config.schema import TrainConfig
from prefopt.distributed import checkpoint as on_disk
from prefopt.distributed.checkpoint import CheckpointFacts
from prefopt.distributed.group import barrier, during, on_main, raise_on_all
from prefopt.distributed.preemption import Preempted
from prefopt.distributed.saving import Problems, find_newest, save_weights
from prefopt.distributed.unpickling import data_only
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main, world_size
from prefopt.runs.directory import RunDirectory
from prefopt.runs.final_model import copy_model, has_sound_model, seal_model
from prefopt.storage import sealed
from prefopt.tracking.metrics import Mirror
from prefopt.training.callbacks import ConsoleCallback, MetricsCallback, StepCallback
from prefopt.training.durable import DurableTrainer, NothingLeftError
from prefopt.training.pruning import build_pruning

logger = logging.getLogger(__name__)


def train(trainer: Any, mirror: Mirror | None) -> None:
    """Trains to the end, from the newest complete checkpoint if there is one, and writes `model/`.

    Args:
        trainer: As `build_trainer` returns it.
        mirror: Also gets every line of metrics.jsonl, on rank 0.

    Raises:
        Preempted: A stop was requested; a checkpoint was written, and the same command resumes from it.
        PrunedError: The run is a trial of a search, and other trials do better.
    """
    config, run = trainer.run.config, trainer.run.directory
    if has_sound_model(run):
        logger.info("resume: training was complete; what is left is the report")
        return
    checkpoint = find_newest(run.checkpoints)
    facts = None if checkpoint is None else on_disk.read_manifest(checkpoint)[0]
    if facts is not None and facts.is_last(trainer.total_steps()) and not facts.evaluation_due:
        logger.info("resume: training was over (%s); its weights become the model", checkpoint)
        on_main(lambda: trainer.saver.rotate(facts))
        finish_model(trainer, config, run)
        return
    start = None if checkpoint is None else take_up(trainer, checkpoint, run)
    tell_rows(trainer, config)
    trainer.records.begin(facts, mirror)
    with phases.of("reference"):
        trainer.prepare()
    show = ConsoleCallback(trainer.run.console)
    trainer.remove_callback(PrinterCallback)
    callbacks = (show, MetricsCallback(trainer, show), *build_pruning(run, trainer.run.size))
    for callback in (*callbacks, *trainer.run.own.callbacks, StepCallback(trainer)):  # the last may evaluate
        trainer.add_callback(callback)
    try:
        with phases.of("set_up"), data_only():
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except NothingLeftError:
        logger.info("resume: training was over, and now its last evaluation is done too")
    finally:
        show.close()
    trainer.records.write_waiting()
    raise_on_all(trainer.records.refusal())
    if trainer.stop_reason is not None:
        raise Preempted(trainer.stop_reason)
    finish_model(trainer, config, run)


def tell_rows(trainer: DurableTrainer, config: TrainConfig) -> None:
    """Logs how many rows training sees if `num_epochs` does not end at a whole optimizer step."""
    steps, num_rows, epochs = trainer.total_steps(), len(trainer.train_dataset), config.trainer.num_epochs
    rows = trainer.rows_after(steps)
    if config.trainer.max_steps is None and rows != epochs * num_rows:
        logger.info(
            "training: %d whole steps see %d of %d rows, %.4g epochs, where trainer.num_epochs=%g",
            *(steps, rows, num_rows, rows / num_rows, epochs),
        )


def take_up(trainer: DurableTrainer, checkpoint: Path, run: RunDirectory) -> Path:
    """Restores what transformers does not load from a checkpoint; returns the folder that transformers must load."""
    if getattr(trainer.args, "sync_ref_model", False):
        raise UserError(
            f"{run.path}: algorithm.sync_ref_model=true cannot be resumed, since checkpoints do not hold the "
            "moved reference. Start afresh with run.overwrite=true."
        )
    facts, _ = on_disk.read_manifest(checkpoint)
    logger.info("resume: from step %d (%s)", facts.step, checkpoint)
    start = checkpoint if facts.num_ranks == world_size() else _reshard(trainer, checkpoint, facts)
    trainer.take_up(facts, None if start == checkpoint else start)
    return start


def _reshard(trainer: DurableTrainer, checkpoint: Path, facts: CheckpointFacts) -> Path:
    """Returns a folder with the checkpoint in a form that another number of ranks can load."""
    logger.info("resume: %d ranks go on where %d were", world_size(), facts.num_ranks)
    if facts.zero_stage is None:
        return checkpoint
    from prefopt.distributed.universal import load_universal, make_universal

    folder = checkpoint.with_name(f"{on_disk.RESHARDED_PREFIX}{facts.step}")
    on_main(lambda: make_universal(checkpoint, folder))
    load_universal(trainer)
    return folder


@phases.of("final_model")
def finish_model(trainer: DurableTrainer, config: TrainConfig, run: RunDirectory) -> None:
    """Writes and seals the final model or adapter in `model.partial/`, then renames it to `model/`. All ranks call it.

    Its files are copied from the checkpoint at the end of training, or written again if that one could not be
    saved. They are not linked, so that later changes to `model/` do not change a sealed checkpoint.

    Raises:
        UserError: The model cannot be written; the last checkpoint holds the same weights.
    """
    aside = run.path / "model.partial"
    on_main(lambda: shutil.rmtree(aside, ignore_errors=True))
    checkpoint = on_main(lambda: _checkpoint_of_last_step(trainer, run))
    problems = Problems()
    with during("saving the final model", may_take_long=True):
        if checkpoint is None:
            save_weights(trainer, aside, problems)
        if is_main() and problems.first is None:
            with problems.kept():
                if checkpoint is None:
                    digests = sealed.digest(aside, on_disk.list_files(aside))
                else:
                    digests = copy_model(checkpoint, aside, with_code=config.model.trust_remote_code)
                seal_model(aside, run.model, digests)
        problem = problems.agreed()
    if problem is not None:
        on_main(lambda: shutil.rmtree(aside, ignore_errors=True))
        raise UserError(
            f"{run.model}: cannot be written ({problem}). Free space, if that is the cause, and run the same command: "
            "it goes on from the newest checkpoint that is whole."
        )
    barrier()


def _checkpoint_of_last_step(trainer: DurableTrainer, run: RunDirectory) -> Path | None:
    complete = on_disk.list_complete(run.checkpoints)
    if not complete or not on_disk.read_manifest(complete[-1])[0].is_last(trainer.total_steps()):
        return None
    return complete[-1]
