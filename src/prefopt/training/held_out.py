"""Divides the held-out examples among ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.distributed.group import agree, during
from prefopt.process.ranks import rank, world_size

if TYPE_CHECKING:
    from prefopt.training.durable import DurableTrainer


class StopEvaluation(Exception):
    """All ranks have agreed to stop during an evaluation."""


@dataclass
class EvaluationBatch:
    """One batch of the held-out examples on this rank.

    Attributes:
        index: Position among all batches of all ranks; it does not depend on the number of ranks.
        inputs: Tensors on the device.
        counts: False for a batch that this rank computes only because all ranks must run every forward.
    """

    index: int
    inputs: dict[str, Any]
    counts: bool


def iterate_held_out(trainer: "DurableTrainer") -> Iterator[EvaluationBatch]:
    """Yields this rank's share of a trainer's held-out batches; all ranks get equally many.

    Raises:
        StopEvaluation: A rank was asked to stop; raised on all ranks.
    """
    data, size = trainer.eval_dataset, trainer.args.per_device_eval_batch_size
    num_batches = -(-len(data) // size)
    for start in range(0, num_batches, world_size()):
        with during(f"the evaluation after step {trainer.state.global_step}"):
            (is_asked,) = agree(trainer.run.stop.requested is not None)
        if is_asked:
            trainer.note_stop()
            raise StopEvaluation
        index = start + rank()
        counts = index < num_batches
        place = index if counts else 0
        rows = range(place * size, min(len(data), (place + 1) * size))
        batch = trainer.data_collator(data.__getitems__(list(rows)))
        yield EvaluationBatch(index, trainer._prepare_inputs(batch), counts)
