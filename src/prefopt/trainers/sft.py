"""SFT through TRL's trainer, on ids and labels that are ready."""

from typing import Any

import torch
import trl

from prefopt.examples import Examples
from prefopt.modeling.load import build_peft_config, load_model
from prefopt.schema import TrainConfig
from prefopt.trainers.batches import count_examples
from prefopt.trainers.training import log_evaluation


class SFTTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with a held-out loss that is a mean over tokens, whatever the batch size."""

    def prepare(self, *_: Any) -> None:
        """Nothing comes before the first step."""

    def pairs_after(self, step: int) -> int:
        """Rows seen after `step` optimizer steps."""
        return count_examples(self, step)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card for a checkpoint: the run directory says where it comes from."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Logs and returns the held-out loss and token accuracy, each a mean over trained tokens."""
        assert eval_dataset is None, "held-out rows are given to the constructor"
        self.model.eval()
        logps, hits, tokens = 0.0, 0, 0
        for batch in self.get_eval_dataloader():
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**inputs, use_cache=False, fused_lm_head=True)
            scored = inputs["labels"][:, 1:] != -100
            logps += outputs.log_probs.double().sum().item()
            hits += int((outputs.is_top1 & scored).sum())
            tokens += int(scored.sum())
        metrics = {"loss": -logps / tokens, "mean_token_accuracy": hits / tokens}
        return log_evaluation(self, metrics, metric_key_prefix)


def build(config: TrainConfig, arguments: Any, examples: Examples) -> SFTTrainer:
    """Loads the policy and returns the trainer; `arguments` is what `build_sft_arguments` returned."""
    return SFTTrainer(
        model=load_model(config.model, config.peft.method),
        args=arguments,
        train_dataset=examples.tokenized.train,
        eval_dataset=examples.tokenized.held_out if arguments.eval_strategy != "no" else None,
        processing_class=examples.tokenizer,
        peft_config=build_peft_config(config.peft, config.model),
    )
