"""The held-out examples, shared out among ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefopt.distributed.group import agree, during
from prefopt.process.ranks import rank, world_size


class StopEvaluation(Exception):
    """All ranks have agreed to stop in the midst of an evaluation."""


@dataclass
class EvaluationBatch:
    """One batch of the held-out examples on this rank.

    Attributes:
        index: Its place among all batches, whatever the number of ranks.
        inputs: Tensors on the device.
        counts: False for a batch that this rank only computes because all ranks must take part in a forward.
    """

    index: int
    inputs: dict[str, Any]
    counts: bool


def iterate_held_out(trainer: Any) -> Iterator[EvaluationBatch]:
    """This rank's share of a trainer's held-out batches; all ranks make the same number of rounds.

    Raises:
        StopEvaluation: On all ranks, when one of them was asked to stop.
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
