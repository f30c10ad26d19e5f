"""DPO through TRL's trainer, on tokenised pairs, with shared prompts, a stored reference and exact evaluation."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import trl
from datasets import Dataset
from torch.nn import Module
from transformers import PreTrainedTokenizerBase
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer

from prefopt.config.choices import PeftMethod, ReferenceMode
from prefopt.config.schema import DPOAlgorithmConfig, TrainConfig
from prefopt.data.ragged import PairLogps, PairTable
from prefopt.data.steps import NO_ROW, ROWS
from prefopt.distributed.group import agree, during, gather
from prefopt.distributed.preemption import Preempted
from prefopt.evaluation.material import sample_rows
from prefopt.evaluation.scoring import Scorer
from prefopt.models.kernels import fuse_layers
from prefopt.models.load import load_model
from prefopt.models.lookup import PairsWithReference
from prefopt.models.modes import evaluating
from prefopt.models.reference import ReferenceStore, Usage, check_independence, open_store
from prefopt.models.shared_prefix import SharedPrefix, share_prompts
from prefopt.models.shared_prefix.collate import REFERENCE, PairCollator
from prefopt.models.shared_prefix.layout import Indices
from prefopt.process.console import progress_bar
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main, world_size
from prefopt.training.algorithm import Algorithm
from prefopt.training.batches import examples_until
from prefopt.training.deferred import Deferred, Number
from prefopt.training.durable import DurableTrainer
from prefopt.training.held_out import iterate_held_out
from prefopt.training.replay import Recorder, ReferenceLogps, Replay

logger = logging.getLogger(__name__)


class DPOTrainer(DurableTrainer, trl.DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on tokenised pairs, with reference log-probs from a store and an exact evaluation.

    TRL's own evaluation averages over batches, so its accuracies and margins change with the batch size
    (huggingface/trl#7010). The loss is computed by TRL and weighted so that a step's loss is the mean over its pairs.
    """

    trl_loss_function = trl.DPOTrainer._compute_loss

    ld_alpha: float | None
    precompute_ref_logps: bool
    engine: SharedPrefix | None
    store: ReferenceStore | None

    def __init__(self, **given: Any) -> None:
        self._num_forwards = self._num_pairs = 1
        self._reference: dict[int, ReferenceLogps] = {}
        self._reference_model: Any = None
        with _without_weights_hash():
            super().__init__(**given)
        if self.store is not None:
            self.store.check((PairTable.of(data), rows) for data, rows in self._reference_needs().values())

    def equip(self) -> None:
        """Opens the reference store, and turns on shared prompts in the forwards of policy and reference."""
        config, device = self.run.config, self.args.device
        if self.run.own.loss is not None and self.aux_loss_enabled:
            raise UserError(
                "algorithm.loss_function: this model's router adds a loss to TRL's, which one of your own would leave "
                "out. Set +trainer.extra.router_aux_loss_coef=0."
            )
        self.has_reference = config.reference.mode is not ReferenceMode.none
        self.store = open_store(config, casts_weights=self.is_deepspeed_enabled and self.args.bf16)
        if self.store is not None:
            check_independence(self.model.config, config.data.max_length)
        self.engine = share_prompts(self.model, config, device)
        if self.engine is not None:
            self.data_collator.with_layout = True
            if config.trainer.tokens_per_device is not None:
                self.data_collator.min_saving = 0.0  # always share prompts: the token budget counts the shared layout
        if self.ref_model is None:
            return
        reference = self.accelerator.unwrap_model(self.ref_model)
        if self.layers is not None:  # otherwise policy and reference would differ by rounding at the start
            fuse_layers(reference, config, device, level=logging.DEBUG)
        if self.engine is not None:
            share_prompts(reference, config, device, level=logging.DEBUG)

    def prepare(self) -> None:
        """Gets or computes the reference log-probs; no checkpoint is loaded yet, so the policy is the reference."""
        work: dict[str, Any] = {"engine": "trl" if self.engine is None else f"shared_prefix ({self.engine.form})"}
        if self.layers is not None:
            work["kernels"] = str(self.layers)
        if self.store is not None:
            work["reference"] = self._look_up_reference(self.store).to_dict()
            self._release_reference()
        run = self.run.directory
        if is_main() and "engine" not in run.read_work():  # keeps the first attempt's entry
            run.add_work(**work)

    def _release_reference(self) -> None:
        """Removes DeepSpeed's inference hooks from the policy; under ZeRO-3 they would also fire in training."""
        if self.is_deepspeed_enabled and self._reference_model is not None:
            self._reference_model.destroy()
        self._reference_model = None

    def _reference_needs(self) -> dict[str, tuple[Dataset, Indices | None]]:
        """Returns for each data set, by name, the rows whose reference log-probs the run uses; None for all.

        Of the training data these are the rows that its steps see, and those that its report measures.
        """
        train, held_out, config = self.train_dataset, self.eval_dataset, self.run.config
        seen = examples_until(self, self.total_steps())
        measured = sample_rows(len(train), config.evaluation.max_train_examples, config.run.seed)
        needs: dict[str, tuple[Dataset, Indices | None]] = {"train": (train, np.union1d(seen, measured))}
        return needs if held_out is None else {**needs, "eval": (held_out, None)}

    def describe_needs(self) -> dict[str, Any]:
        """Returns for provenance.json how many pairs of how many need reference log-probs from the store."""
        if self.store is None:
            return {}
        counts = {
            name: {"num_needed": len(data if rows is None else rows), "num_rows": len(data)}
            for name, (data, rows) in self._reference_needs().items()
        }
        return {"reference": counts}

    def _look_up_reference(self, store: ReferenceStore) -> Usage:
        """Gives the rows of both data sets their reference log-probs; returns what the store did."""
        total = Usage()
        for name, (dataset, rows) in self._reference_needs().items():
            with progress_bar(self.run.console, f"reference, {name}") as on_progress:
                logps, usage = store.complete(
                    PairTable.of(dataset),
                    self._score_reference,
                    on_progress,
                    rows=rows,
                    batch_size=self.args.per_device_eval_batch_size,
                )
            logger.info("reference: %s: %s", name, usage)
            total += usage
            setattr(self, f"{name}_dataset", PairsWithReference(dataset, logps))
        return total

    def get_batch_samples(self, *args: object, **kwargs: object) -> tuple[list[object], torch.Tensor | int | None]:
        """Returns the batches of an optimizer step's forwards, and stores how many pairs the step has."""
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        step = self.state.global_step
        self._num_forwards = len(samples) * world_size()
        self._num_pairs = self.rows_after(step + 1) - self.rows_after(step)
        return samples, num_items

    def training_step(self, model: Module, inputs: dict[str, Any], num_items_in_batch: object = None) -> torch.Tensor:
        """Runs one forward and backward; no pair of it may lack its reference."""
        if self.store is not None:
            assert all(self.train_dataset.has_reference(row) for row in inputs[ROWS] if row != NO_ROW)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: Module | Recorder, inputs: dict[str, Any], **kwargs: object) -> torch.Tensor:
        """Returns TRL's loss, with stored reference log-probs; in training, weighted by the batch's share of pairs."""
        if self.precompute_ref_logps and "ref_chosen_logps" not in inputs:
            chosen, rejected = self.compute_ref_log_probs(None, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for_trl = {k: v for k, v in inputs.items() if k != REFERENCE}
        loss, metrics = self._compute_trl_loss(model, for_trl, **kwargs)
        if not self.model.training:
            return loss
        self._note_metrics(loss, metrics)
        weight = self.num_rows * self._num_forwards / self._num_pairs
        return loss if weight == 1 else loss * weight

    def compute_trial_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns the loss of a batch without its reference log-probs (zeros instead); it needs the same memory."""
        if self.precompute_ref_logps:
            zeros = torch.zeros(len(batch["input_ids"]) // 2, device=batch["input_ids"].device)
            batch = {**batch, "ref_chosen_logps": zeros, "ref_rejected_logps": zeros}
        loss, _ = self._compute_trl_loss(self.model, batch)
        return loss

    def _compute_trl_loss(
        self, model: Module | Recorder, inputs: dict[str, Any], **kwargs: object
    ) -> tuple[torch.Tensor, dict[str, Number]]:
        """TRL's metrics of a forward, and its loss, or that of `algorithm.loss_function` from the same log-probs."""
        if self.run.own.loss is None:
            return super()._compute_trl_loss(model, inputs, **kwargs)
        recorder = Recorder(model)
        _, metrics = super()._compute_trl_loss(recorder, inputs, **kwargs)
        chosen, rejected = recorder.log_probs.sum(dim=1).chunk(2)
        lengths = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
        references = (inputs[f"ref_{side}_logps"].clone() for side in ("chosen", "rejected"))  # they are used again
        losses = self.run.own.loss(ScoredPairs(self.beta, chosen, rejected, *references, *lengths))
        if not isinstance(losses, torch.Tensor) or losses.shape != chosen.shape:
            found = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise UserError(
                "algorithm.loss_function: must return a tensor with one loss per pair, of shape "
                f"{tuple(chosen.shape)}, found {found}."
            )
        if not losses.is_floating_point() or (chosen.requires_grad and not losses.requires_grad):
            raise UserError(
                "algorithm.loss_function: must be computed from pairs.chosen_logps or pairs.rejected_logps with their "
                f"gradient, found a tensor of {losses.dtype} without."
            )
        return losses.mean(), metrics

    def _note_metrics(self, loss: torch.Tensor, metrics: dict[str, Number]) -> None:
        """Adds TRL's means over this batch to the window, each with the number of pairs or tokens that it averages."""
        if not self.num_rows:
            return
        chosen, rejected = self.counts.scored
        counts = {"entropy": chosen + rejected, "logits/chosen": chosen, "logits/rejected": rejected}
        counts["mean_token_accuracy"] = chosen
        for name, value in {"loss": Deferred.of(loss), **metrics}.items():
            count = counts.get(name, self.num_rows)
            self.window.add(name, value * count, count)
        self.window.add_tokens(self.counts.real)

    def compute_ref_log_probs(self, model: Module | None, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a batch's reference log-probs (chosen, rejected) for the loss, shape (pairs,) each.

        They are zero without a reference, taken from the store if the batch has them, and computed otherwise.
        """
        if not self.has_reference:
            zeros = torch.zeros(len(inputs["input_ids"]), device=inputs["input_ids"].device)
            chosen, rejected = zeros.chunk(2)
            return chosen, rejected
        if REFERENCE in inputs and self.ld_alpha is None:  # TRL's code would switch adapters and checkpointing
            chosen, rejected = inputs[REFERENCE].sum(dim=1).chunk(2)
            return chosen, rejected
        scored = Replay(inputs[REFERENCE]) if REFERENCE in inputs else model
        chosen, rejected = super().compute_ref_log_probs(scored, inputs)
        return chosen, rejected

    def _score_reference(self, table: PairTable, rows: Indices) -> Iterator[tuple[Indices, PairLogps]]:
        """Yields log-probs of pairs under the reference: the policy before its first step, without its adapter."""
        if self._reference_model is None:
            is_wrapped = self.is_deepspeed_enabled
            self._reference_model = prepare_deepspeed(self.model, self.accelerator) if is_wrapped else self.model
        scorer = Scorer(
            self._reference_model,
            self.processing_class.pad_token_id,
            self.args.per_device_eval_batch_size,
            self.args.bf16,
            self.engine is not None,
        )
        without_adapter = self.model.disable_adapter() if hasattr(self.model, "peft_config") else nullcontext()
        with evaluating(self.model), without_adapter:
            for scored in scorer.iterate_pairs(table, rows):
                with during("the reference pass"):
                    (is_asked,) = agree(self.run.stop.requested is not None)
                yield scored
                if is_asked:
                    raise Preempted(self.note_stop())

    def _precompute_ref_logps(self, dataset: Dataset, *_: object) -> Dataset:
        """Returns the data set unchanged. TRL would compute reference log-probs here; `prepare` does it later."""
        return dataset

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """Returns the data set unchanged. TRL would tokenise here; the data sets already hold token ids."""
        return dataset

    def measure_held_out(self) -> dict[str, float]:
        """Returns the held-out metrics under TRL's names, each a mean over pairs."""
        mine = {}
        for batch in iterate_held_out(self):
            values, loss = self._evaluate_batch(batch.index, batch.inputs)
            if batch.counts:
                mine[batch.index] = {name: value.double().cpu() for name, value in values.items()}, loss
        batches = dict(sorted(item for share in gather(mine) for item in share.items()))
        columns = [values for values, _ in batches.values()]
        metrics = {name: torch.cat([values[name] for values in columns]).mean().item() for name in columns[0]}
        sizes = [len(values["rewards/margins"]) for values in columns]
        losses = [loss * size for (_, loss), size in zip(batches.values(), sizes, strict=True)]
        return {"loss": sum(losses) / sum(sizes), **metrics}

    def _evaluate_batch(self, index: int, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float]:
        """Returns per-pair values of one batch, each of shape (pairs,), and TRL's loss of the batch."""
        reference = self._reference_logps(index, batch)
        recorder = Recorder(self.model)
        is_stored, self.precompute_ref_logps = self.precompute_ref_logps, True  # use the batch's reference
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                for_loss = {"ref_chosen_logps": reference.loss[0], "ref_rejected_logps": reference.loss[1]}
                loss = self.compute_loss(recorder, {**batch, **for_loss}).item()
        finally:
            self.precompute_ref_logps = is_stored
        chosen, rejected = recorder.log_probs.double().sum(dim=1).chunk(2)
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
        """Returns the reference log-probs of a held-out batch; computed once, unless the reference moves (TR-DPO)."""
        if index in self._reference and not self.args.sync_ref_model:
            return self._reference[index]
        model = self.ref_model or self.model
        for_loss = sums = self.compute_ref_log_probs(model, batch)
        if self.ld_alpha is not None:
            alpha, self.ld_alpha = self.ld_alpha, None  # for plain sums
            sums = self.compute_ref_log_probs(model, batch)
            self.ld_alpha = alpha
        self._reference[index] = ReferenceLogps(sums, for_loss)
        return self._reference[index]


class ScoredPairs(NamedTuple):
    """The preference pairs of a forward, as `algorithm.loss_function` gets them; tensors of shape (pairs,).

    Attributes:
        beta: `algorithm.beta`.
        chosen_logps: Log-prob of the chosen completion under the policy, summed over its tokens; with gradient.
        rejected_logps: The same of the rejected completion.
        ref_chosen_logps: Log-prob of the chosen completion under the reference; zero with reference=none.
        ref_rejected_logps: The same of the rejected completion.
        chosen_lengths: How many tokens the chosen completion has.
        rejected_lengths: The same of the rejected completion.
    """

    beta: float
    chosen_logps: torch.Tensor
    rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor


def build_parts(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns further arguments of the trainer: the collator, and the reference model if each step needs its own one.

    With adapters there is no reference model of its own: the policy without its adapter is the reference.
    """
    is_own = config.reference.mode is ReferenceMode.live and config.peft.method is PeftMethod.none
    return {
        "ref_model": load_model(config.model) if is_own else None,
        "data_collator": PairCollator(tokenizer.pad_token_id),
    }


def trl_fields(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields of TRL's DPOConfig that the settings of DPO decide."""
    algorithm = config.algorithm
    assert isinstance(algorithm, DPOAlgorithmConfig)
    return {
        "beta": algorithm.beta,
        "loss_type": algorithm.loss_types,
        "loss_weights": algorithm.loss_weights,
        "label_smoothing": algorithm.label_smoothing,
        "ld_alpha": algorithm.ld_alpha,
        "f_divergence_type": algorithm.f_divergence_type.value,
        "f_alpha_divergence_coef": algorithm.f_alpha_divergence_coef,
        "use_weighting": algorithm.use_weighting,
        "discopop_tau": algorithm.discopop_tau,
        "sync_ref_model": algorithm.sync_ref_model,
        "ref_model_mixup_alpha": algorithm.ref_model_mixup_alpha,
        "ref_model_sync_steps": algorithm.ref_model_sync_steps,
        "precompute_ref_log_probs": config.reference.mode is not ReferenceMode.live,
    }


@contextmanager
def _without_weights_hash() -> Iterator[None]:
    """Stops TRL from hashing all weights (60 million parameters/s, on every rank) for a cache that is not used."""
    original = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: None
    try:
        yield
    finally:
        dpo_trainer.hash_module = original


ALGORITHM = Algorithm(DPOAlgorithmConfig, DPOTrainer, trl.DPOConfig, trl_fields, build_parts)
