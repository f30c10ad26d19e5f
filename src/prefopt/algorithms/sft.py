"""SFT through TRL's trainer, on ids and labels that are ready."""

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
    """TRL's SFTTrainer with log lines and held-out metrics that are means over tokens, whatever the batch size."""

    trl_loss_function = trl.SFTTrainer.compute_loss

    def prepare(self) -> None:
        """Notes what computes; nothing else comes before the first step."""
        if is_main() and self.layers is not None:
            self.run.directory.add_work(kernels=str(self.layers))

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """TRL's loss, a mean over the trained tokens of the step."""
        loss, metrics = self._compute_trl_loss(model, inputs, **kwargs)
        if self.model.training:
            self._note_metrics(loss, metrics, kwargs["num_items_in_batch"])
        return loss

    def compute_trial_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch, for the memory that it takes."""
        trained = (batch["labels"][:, 1:] != IGNORED).sum()
        loss, _ = self._compute_trl_loss(self.model, batch, num_items_in_batch=trained)
        return loss

    def _note_metrics(self, loss: torch.Tensor, metrics: dict[str, Number], step: torch.Tensor) -> None:
        """Adds TRL's numbers of this batch to the window, each with its tokens.

        Args:
            loss: The batch's part of the step's loss, times the number of ranks.
            metrics: Means over the batch.
            step: Trained tokens of the whole step.
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
        """The held-out loss and token accuracy, each a mean over trained tokens."""
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
    """The fields of TRL's SFTConfig that SFT decides; rows come with their labels, so TRL prepares nothing."""
    algorithm = config.algorithm
    assert isinstance(algorithm, SFTAlgorithmConfig)
    return {"loss_type": algorithm.loss_type.value, "dataset_kwargs": {"skip_prepare_dataset": True}}


ALGORITHM = Algorithm(SFTAlgorithmConfig, SFTTrainer, trl.SFTConfig, trl_fields, lambda config, tokenizer: {})
