"""DPO through TRL's trainer, on ids that are ready, with held-out metrics that are exact."""

from typing import Any, NamedTuple

import torch
import trl

from prefopt.choices import PeftMethod
from prefopt.examples import Examples
from prefopt.modeling.load import build_peft_config, load_model
from prefopt.schema import TrainConfig
from prefopt.trainers.training import log_evaluation


class DPOTrainer(trl.DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer with two changes: no second tokenisation, and an evaluation that averages over pairs.

    TRL's own evaluation averages over batches, so its accuracies and margins change with the batch size
    (huggingface/trl#7010). The loss comes from TRL's code, weighted by the pairs of each batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ld_alpha: float | None
        super().__init__(*args, **kwargs)
        self._reference: dict[int, ReferenceLogps] = {}

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """TRL tokenises here; our data sets hold prompt_ids, chosen_ids and rejected_ids already."""
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card for a checkpoint: the run directory says where it comes from."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Logs and returns the held-out metrics under TRL's names, each a mean over pairs."""
        assert eval_dataset is None, "held-out pairs are given to the constructor"
        self.model.eval()
        collected: dict[str, list[torch.Tensor]] = {}
        losses = []
        for index, batch in enumerate(self.get_eval_dataloader()):
            values, loss = self._evaluate_batch(index, self._prepare_inputs(batch))
            losses.append(loss * len(values["rewards/margins"]))
            for name, value in values.items():
                collected.setdefault(name, []).append(value)
        self._metrics["eval"].clear()  # TRL's means over batches
        metrics = {name: torch.cat(values).double().mean().item() for name, values in collected.items()}
        num_pairs = sum(len(value) for value in collected["rewards/margins"])
        metrics = {"loss": sum(losses) / num_pairs, **metrics}
        return log_evaluation(self, metrics, metric_key_prefix)

    def _evaluate_batch(self, index: int, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float]:
        """Per-pair values of one batch, each of shape (pairs,), and TRL's loss of the batch."""
        reference = self._reference_logps(index, batch)
        recorder = Recorder(self.model)
        self.precompute_ref_logps = True  # take the reference from the batch
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                for_loss = {"ref_chosen_logps": reference.loss[0], "ref_rejected_logps": reference.loss[1]}
                loss = self.compute_loss(recorder, {**batch, **for_loss}).item()
        finally:
            self.precompute_ref_logps = False
        chosen, rejected = recorder.log_probs.float().sum(dim=1).chunk(2)
        chosen_tokens, rejected_tokens = batch["completion_mask"][:, 1:].sum(dim=1).chunk(2)
        chosen_rewards = self.beta * (chosen - reference.sums[0])
        rejected_rewards = self.beta * (rejected - reference.sums[1])
        return {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "rewards/margins": chosen_rewards - rejected_rewards,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "preference_accuracy": (chosen / chosen_tokens > rejected / rejected_tokens).float(),
        }, loss

    def _reference_logps(self, index: int, batch: dict[str, Any]) -> "ReferenceLogps":
        """Reference log-probs of a held-out batch; computed once, unless the reference moves (TR-DPO)."""
        if index in self._reference and not self.args.sync_ref_model:
            return self._reference[index]
        model = self.ref_model or self.model
        for_loss = sums = self.compute_ref_log_probs(model, batch)
        if self.ld_alpha is not None:
            alpha, self.ld_alpha = self.ld_alpha, None  # plain sums
            sums = self.compute_ref_log_probs(model, batch)
            self.ld_alpha = alpha
        self._reference[index] = ReferenceLogps(sums, for_loss)
        return self._reference[index]


class ReferenceLogps(NamedTuple):
    """Chosen and rejected log-probs under the reference, each of shape (pairs,).

    Attributes:
        sums: Plain sums over the completion, behind every reward that is shown.
        loss: What TRL's loss expects: the same, or discounted by `ld_alpha`.
    """

    sums: tuple[torch.Tensor, torch.Tensor]
    loss: tuple[torch.Tensor, torch.Tensor]


class Recorder:
    """Calls a model and keeps the per-token log-probs that it returned."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs: torch.Tensor = torch.empty(0)

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        self.log_probs = outputs.log_probs
        return outputs


def build(config: TrainConfig, arguments: Any, examples: Examples) -> DPOTrainer:
    """Loads policy and reference and returns the trainer; `arguments` is what `build_dpo_arguments` returned."""
    has_adapter = config.peft.method is not PeftMethod.none
    return DPOTrainer(
        model=load_model(config.model, config.peft.method),
        ref_model=None if has_adapter else load_model(config.model),
        args=arguments,
        train_dataset=examples.tokenized.train,
        eval_dataset=examples.tokenized.held_out if arguments.eval_strategy != "no" else None,
        processing_class=examples.tokenizer,
        peft_config=build_peft_config(config.peft, config.model),
    )
