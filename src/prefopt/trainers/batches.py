"""Which examples an optimizer step sees: the batches of a run as configured, and how far a run has come."""

import logging
import math
from typing import Any

from transformers import TrainerCallback

from prefopt.choices import BatchOrder
from prefopt.data.batching import PairBatches
from prefopt.data.ragged import PairTable
from prefopt.distributed.ranks import world_size
from prefopt.modeling.shared_prefix.layout import to_segments
from prefopt.schema import TrainConfig

logger = logging.getLogger(__name__)


def plan_batches(trainer: Any, config: TrainConfig) -> PairBatches | None:
    """The batches of the run where the configuration wants others than transformers makes.

    Raises:
        UserError: A pair above the budget of tokens.
    """
    settings, pairs = config.trainer, trainer.train_dataset
    budget = settings.tokens_per_device
    if budget is None and settings.batch_order is BatchOrder.random:
        return None
    lengths, is_padded = PairTable.of(pairs).lengths, trainer.engine is None
    if not is_padded:
        lengths = to_segments(lengths)
    num_epochs = math.ceil(settings.num_epochs)
    if settings.max_steps is not None and budget is not None:
        micro_batches = settings.max_steps * settings.gradient_accumulation_steps * world_size()
        num_epochs = math.ceil(micro_batches * budget / lengths.sum()) + 1
    batches = PairBatches(
        lengths,
        order=settings.batch_order,
        seed=config.run.seed,
        num_ranks=world_size(),
        pairs=settings.per_device_batch_size if budget is None else None,
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


class EpochCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the batches which epoch begins; on several ranks, a resumed one does not reach them through accelerate."""

    def __init__(self, batches: PairBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._batches.set_epoch(int(state.epoch))


def count_examples(trainer: Any, step: int, batches: PairBatches | None = None) -> int:
    """Examples seen after `step` optimizer steps, over all ranks; the last batch of an epoch may be short."""
    args, num_examples = trainer.args, len(trainer.train_dataset)
    accumulation, ranks = args.gradient_accumulation_steps, args.world_size
    if batches is None:
        batch = args.per_device_train_batch_size * accumulation * ranks
        epochs, within = divmod(step, math.ceil(num_examples / batch))
        return int(epochs * num_examples + within * batch)
    per_rank = len(batches) // ranks
    epochs, within = divmod(step, math.ceil(per_rank / accumulation))
    return batches.num_pairs_after((epochs * per_rank + within * accumulation) * ranks)
