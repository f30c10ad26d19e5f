"""Which examples each optimizer step sees, and how many examples were seen after a given step."""

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import BatchOrder
from prefopt.config.schema import TrainConfig
from prefopt.data.batching import PairBatches
from prefopt.data.ragged import PairTable
from prefopt.data.steps import StepBatches
from prefopt.models.shared_prefix.layout import to_segments
from prefopt.process.errors import UserError
from prefopt.process.ranks import world_size

if TYPE_CHECKING:
    from prefopt.training.durable import DurableTrainer

logger = logging.getLogger(__name__)

Batches = StepBatches | PairBatches
MAX_PLANNED = 10**9
"""Most rows (over all epochs) that are divided into batches before training; each row takes about 100 ns."""


def plan_batches(trainer: Any, config: TrainConfig) -> Batches:
    """Plans the batches of the run; `trainer.fit` must be set.

    Raises:
        UserError: There are fewer examples than ranks, or a pair exceeds the token budget.
    """
    settings, pairs, args = config.trainer, trainer.train_dataset, trainer.args
    budget = trainer.fit.tokens
    if len(pairs) < world_size():
        raise UserError(f"data.train: {len(pairs)} rows for {world_size()} ranks. Start fewer ranks, or add data.")
    if budget is None and settings.batch_order is BatchOrder.random:
        return StepBatches(
            len(pairs),
            seed=config.run.seed,
            batch_size=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            num_ranks=world_size(),
        )
    lengths, is_padded = PairTable.of(pairs).lengths, trainer.engine is None
    if not is_padded:
        lengths = to_segments(lengths)
    num_epochs = math.ceil(settings.num_epochs)
    if settings.max_steps is not None and budget is not None:
        micro_batches = settings.max_steps * args.gradient_accumulation_steps * world_size()
        num_epochs = math.ceil(micro_batches * budget / lengths.sum()) + 1
    if budget is not None and num_epochs * len(pairs) > MAX_PLANNED:
        raise UserError(
            f"trainer.tokens_per_device: batches are planned for the whole run, and {num_epochs:,} epochs of "
            f"{len(pairs):,} pairs are more than {MAX_PLANNED:,}. Set trainer.max_steps or trainer.num_epochs to less."
        )
    batches = PairBatches(
        lengths,
        order=settings.batch_order,
        seed=config.run.seed,
        num_ranks=world_size(),
        pairs=args.per_device_train_batch_size if budget is None else None,
        tokens=budget,
        padded=is_padded,
        num_epochs=num_epochs,
        sources=pairs["source"],
    )
    if budget is not None:
        sizes = [len(batch) for batch in batches]
        logger.info(
            "batches: %d to %d pairs in up to %d tokens; trainer.per_device_batch_size is not used",
            min(sizes),
            max(sizes),
            budget,
        )
    return batches


def count_examples(trainer: "DurableTrainer", step: int) -> int:
    """Counts the examples seen after `step` optimizer steps, over all ranks; an epoch's last step may be smaller."""
    return int(trainer.batches.num_rows_after(_count_batches(trainer, step)))


def examples_until(trainer: "DurableTrainer", step: int) -> NDArray[np.int64]:
    """Returns the training rows that the first `step` optimizer steps see, over all ranks, each once."""
    return trainer.batches.rows_in(_count_batches(trainer, step))


def _count_batches(trainer: "DurableTrainer", step: int) -> int:
    ranks, accumulation = trainer.args.world_size, trainer.args.gradient_accumulation_steps
    per_rank = len(trainer.batches) // ranks
    epochs, within = divmod(step, math.ceil(per_rank / accumulation))
    return int((epochs * per_rank + within * accumulation) * ranks)
