"""SFT through TRL's trainer, on tokenised rows with labels."""

from typing import Any

import torch
import trl

from prefopt.config.schema import SFTAlgorithmConfig, TrainConfig
from prefopt.data.steps import IGNORED
from prefopt.distributed.group import gather
from prefopt.process.ranks import is_main
from prefopt.training.algorithm import Algorithm
from prefopt.training.deferred import Deferred, Number
from prefopt.training.durable import DurableTrainer
from prefopt.training.held_out import iterate_held_out


class SFTTrainer(DurableTrainer, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer, with log lines and held-out metrics that are means over tokens, for any batch size."""

    trl_loss_function = trl.SFTTrainer.compute_loss

    def prepare(self) -> None:
        """Writes the fused kernels to work.json; SFT needs nothing else before the first step."""
        if is_main() and self.layers is not None:
            self.run.directory.add_work(kernels=str(self.layers))

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        """Returns TRL's loss, a mean over the trained tokens of the step."""
        loss, metrics = self._compute_trl_loss(model, inputs, **kwargs)
        if self.model.training:
            self._note_metrics(loss, metrics, kwargs["num_items_in_batch"])
        return loss

    def compute_trial_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the loss of a batch that is tried for the memory that it needs."""
        trained = (batch["labels"][:, 1:] != IGNORED).sum()
        loss, _ = self._compute_trl_loss(self.model, batch, num_items_in_batch=trained)
        return loss

    def _note_metrics(self, loss: torch.Tensor, metrics: dict[str, Number], step: torch.Tensor) -> None:
        """Adds TRL's metrics of this batch to the window, weighted by its trained tokens.

        Args:
            loss: The batch's part of the step's loss, multiplied by the number of ranks.
            metrics: Means over the batch.
            step: Number of trained tokens in the whole step.
        """
        if self.num_rows:
            self.window.add_tokens(self.counts.real)
        (trained,) = self.counts.scored
        if not trained:
            return
        per_batch = Deferred.of(loss) * Deferred.of(step) / self.accelerator.num_processes / trained
        for name, value in {**metrics, "loss": per_batch}.items():
            self.window.add(name, value * trained, trained)

    def measure_held_out(self) -> dict[str, float]:
        """Returns the held-out loss and token accuracy, each a mean over trained tokens."""
        mine = {}
        for batch in iterate_held_out(self):
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**batch.inputs, use_cache=False, fused_lm_head=True)
            scored = batch.inputs["labels"][:, 1:] != IGNORED
            hits = int((outputs.is_top1 & scored).sum())
            if batch.counts:
                mine[batch.index] = outputs.log_probs.double().sum().item(), hits, int(scored.sum())
        batches = dict(sorted(item for share in gather(mine) for item in share.items()))
        logps, hits, tokens = (sum(column) for column in zip(*batches.values(), strict=True))
        return {"loss": -logps / tokens, "mean_token_accuracy": hits / tokens}


def trl_fields(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields of TRL's SFTConfig that SFT decides; rows have labels already, so TRL prepares nothing."""
    algorithm = config.algorithm
    assert isinstance(algorithm, SFTAlgorithmConfig)
    return {"loss_type": algorithm.loss_type.value, "dataset_kwargs": {"skip_prepare_dataset": True}}


ALGORITHM = Algorithm(SFTAlgorithmConfig, SFTTrainer, trl.SFTConfig, trl_fields, lambda config, tokenizer: {})
