"""Number of examples per optimizer step, and their division among ranks and forwards."""

import logging
from dataclasses import dataclass

from prefopt.config.choices import BatchOrder
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError
from prefopt.process.ranks import world_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSize:
    """The division of an optimizer step's examples.

    Attributes:
        per_device: Examples per rank and forward.
        accumulation: Forwards per rank and step.
        num_ranks: Number of processes.
    """

    per_device: int
    accumulation: int
    num_ranks: int

    @property
    def total(self) -> int:
        """Examples per step over all ranks."""
        return self.per_device * self.accumulation * self.num_ranks

    @classmethod
    def wished(cls, config: TrainConfig, num_ranks: int) -> "StepSize":
        """Returns the size of a forward and the number of forwards as the settings give them."""
        return cls(config.trainer.per_device_batch_size, config.trainer.gradient_accumulation_steps, num_ranks)

    @classmethod
    def total_of(cls, config: TrainConfig, num_ranks: int) -> int:
        """Returns the examples per step of a run that begins on this number of ranks."""
        return config.trainer.batch_size or cls.wished(config, num_ranks).total

    @classmethod
    def of(cls, config: TrainConfig, kept: "StepSize | None") -> "StepSize":
        """Divides a step among the current ranks.

        Args:
            config: Settings with the wished sizes.
            kept: Division of the first attempt, whose examples per step are kept on any number of ranks; None in the
                first attempt.

        Raises:
            UserError: The ranks cannot share that number evenly, or the new division would change the loss.
        """
        trainer, ranks = config.trainer, world_size()
        wished = cls.wished(config, ranks)
        total = kept.total if kept and trainer.batch_size is None else cls.total_of(config, ranks)
        share, rest = divmod(total, ranks)
        if rest:
            raise UserError(
                f"a step of this run has {total} examples, which {ranks} ranks cannot share evenly. "
                f"Start a number of ranks that divides {total}."
            )
        size = max(size for size in range(1, min(trainer.per_device_batch_size, share) + 1) if share % size == 0)
        divided = wished if total == wished.total else cls(size, share // size, ranks)
        if kept is not None and kept != divided:
            _require_divisible_losses(config, kept, divided)
        if divided != wished:
            logger.info("batches: %d examples per step: %s", total, divided)
        return divided

    def __str__(self) -> str:
        return f"{self.num_ranks} ranks x {self.accumulation} forwards x {self.per_device}"


def _require_divisible_losses(config: TrainConfig, kept: StepSize, divided: StepSize) -> None:
    """Refuses to resume with another division if the loss depends on the sizes of forwards."""
    trainer, whole = config.trainer, config.algorithm.whole_batch_losses
    reason = None
    if trainer.tokens_per_device is not None or trainer.batch_order is not BatchOrder.random:
        reason = "the batches of trainer.tokens_per_device and trainer.batch_order depend on the number of ranks"
    elif whole:
        reason = f"algorithm.loss_type={', '.join(whole)} looks at a forward's pairs as a whole"
    if reason is not None:
        raise UserError(f"this run began with {kept} examples per step, and {reason}. Start {kept.num_ranks} ranks.")
