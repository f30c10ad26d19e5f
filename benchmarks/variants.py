"""One optimizer step of DPO, computed by plain TRL and by prefopt from the same weights, and whether they agree.

TRL off CUDA scores every position with its head, prompts and padding included; on CUDA it scores completions only. So
that nobody takes a CPU's head for a gain of prefopt, the `proxy` variants make TRL's head on the CPU do what it does
on CUDA: they replace the name `_use_triton` in `trl.trainer.utils`, which decides nothing else there. The kernel of
the head looks the name up in its own module and computes as before.
"""

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import trl
from accelerate.utils import send_to_device
from datasets import Dataset
from transformers import AutoTokenizer
from trl.trainer import utils as trl_utils

from benchmarks.shapes import COLUMNS, Batches, Row
from prefopt.data.collate import REFERENCE_COLUMNS, PairCollator
from prefopt.data.ragged import PairTable
from prefopt.data.steps import TokenCounts
from prefopt.evaluation.scoring import Scorer
from prefopt.modeling.reference import ReferenceStore, Usage
from prefopt.modeling.shared_prefix import SharedPrefix
from prefopt.paths import shipped
from prefopt.tracking.window import MetricsWindow
from prefopt.trainers.dpo import DPOTrainer

BASELINE = "trl"
OURS = "prefopt"
LIMITS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 5e-2)}
"""Relative difference of loss and of gradient from TRL's, above which no time is printed; see `Contest.limits`.

In bf16 rounding alone moves the gradient of 24 layers by 1e-2."""
SIDES = ("chosen", "rejected")
ALIKE = 1e-3
"""A loss this close to ln 2 means that policy and reference are equal, and a wrong reference would not be seen."""
NOISE = 0.1
"""The policy is the reference plus noise of this share of each weight's standard deviation."""


class DisagreementError(SystemExit):
    """A variant does not compute what TRL computes."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute a step.

    Attributes:
        trainer: TRL's trainer or ours, on the common policy.
        is_live: The reference runs in every step; else its log-probs are columns of the batch.
        has_engine: Prompts are shared, by the engine of `prefopt`.
        has_compact_head: TRL's head scores completions only, as it does on CUDA.
    """

    name: str
    trainer: Any
    is_live: bool
    has_engine: bool = False
    has_compact_head: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes the policy compute this variant's way; outside of it the policy is plain."""
        if self.has_engine:
            engine = SharedPrefix(self.trainer.model)
            try:
                yield
            finally:
                engine.remove()
        elif self.has_compact_head:
            with mock.patch.object(trl_utils, "_use_triton", return_value=True):
                yield
        else:
            yield

    def differentiate(self, batch: dict[str, Any]) -> torch.Tensor:
        """Adds the gradient of a batch to the policy's, and returns the loss."""
        inputs = send_to_device(batch, self.trainer.accelerator.device)  # as the data loader does
        with self.trainer.compute_loss_context_manager():
            loss: torch.Tensor = self.trainer.compute_loss(self.trainer.model, inputs)
        self.trainer.accelerator.backward(loss)
        return loss.detach()


class Contest:
    """The variants on one model.

    Attributes:
        policy: Trained by every variant; the learning rate is 0, so that it stays what it is.
        reference: What the policy was before noise was added to it.
        variants: By name, `trl` first.
    """

    def __init__(self, model: Any, folder: str, tokenizer: Any = None) -> None:
        """Builds the trainers.

        Args:
            model: Becomes the policy; on the device to measure on.
            folder: For what trainers write.
            tokenizer: Of the model; default: the shipped one, of which random weights need only the padding.
        """
        self.reference = copy.deepcopy(model)
        self.policy = _with_noise(model)
        self._tokenizer = tokenizer or AutoTokenizer.from_pretrained(shipped("assets/base_model"))
        self._folder = folder
        live, precomputed = self._build_plain(), self._build_plain()
        precomputed.precompute_ref_logps = True
        variants = [Variant(BASELINE, live, True), Variant("trl_precompute", precomputed, False)]
        if self.device.type == "cpu":
            variants += [
                Variant("trl_proxy", live, True, has_compact_head=True),
                Variant("trl_proxy_precompute", precomputed, False, has_compact_head=True),
            ]
        variants.append(Variant(OURS, self._build_ours(), False, has_engine=True))
        self.variants = {variant.name: variant for variant in variants}
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=0.0, weight_decay=0.0, fused=self.device.type == "cuda"
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.policy.device
        return device

    def collate(self, name: str, rows: list[Row]) -> dict[str, Any]:
        """The batch of a variant, made by its own collator."""
        batch: dict[str, Any] = self.variants[name].trainer.data_collator(rows)
        return batch

    def add_reference(self, batches: Batches) -> tuple[dict[str, Batches], Usage]:
        """Returns each variant's rows with the reference log-probs that it reads, and what filling our store took."""
        stored, usage = self._store_reference(batches)
        computed = [self._compute_reference(rows) for rows in batches]
        sources = {True: stored, False: computed}
        return {
            name: batches if variant.is_live else sources[variant.has_engine]
            for name, variant in self.variants.items()
        }, usage

    def compare(self, collated: dict[str, list[dict[str, Any]]]) -> tuple[dict[str, tuple[float, float]], float]:
        """Returns each variant's largest relative difference of loss and of gradient from TRL's, and TRL's loss.

        Raises:
            DisagreementError: A difference is above the limit, or the loss is ln 2.
        """
        differences = dict.fromkeys(self.variants, (0.0, 0.0))
        losses = []
        for index in range(len(collated[BASELINE])):
            expected, gradients = 0.0, []
            for name, variant in self.variants.items():
                self.policy.zero_grad()
                with variant.active():
                    loss = variant.differentiate(collated[name][index]).item()
                if name == BASELINE:
                    expected, gradients = loss, [p.grad.cpu().clone() for p in self.policy.parameters()]
                    losses.append(loss)
                found = abs(loss - expected) / expected, self._gradient_difference(gradients)
                differences[name] = (_larger(differences[name][0], found[0]), _larger(differences[name][1], found[1]))
        self.policy.zero_grad()
        self._require_equal(differences, losses, self.limits(collated))
        return differences, sum(losses) / len(losses)

    def limits(self, collated: dict[str, list[dict[str, Any]]]) -> tuple[float, float]:
        """Limits for loss and gradient: at least what the rounding of one log-prob sum in float32 does to them.

        A sum near -700 is good to 6e-5, one near -7,000 to 5e-4; loss and gradient see beta times that.
        """
        batches = collated["trl_precompute"]
        largest = max(float(batch[f"ref_{side}_logps"].abs().max()) for batch in batches for side in SIDES)
        rounding = self.variants[BASELINE].trainer.beta * float(np.spacing(np.float32(largest)))
        loss, gradient = LIMITS[self.policy.dtype]
        return max(loss, rounding), max(gradient, rounding)

    def _require_equal(
        self, differences: dict[str, tuple[float, float]], losses: list[float], at_most: tuple[float, float]
    ) -> None:
        for name, (loss, gradient) in differences.items():
            if not (loss <= at_most[0] and gradient <= at_most[1]):
                raise DisagreementError(
                    f"{name} differs from {BASELINE}: loss by {loss:.1e} (relative, at most {at_most[0]:g}), "
                    f"gradient by {gradient:.1e} (at most {at_most[1]:g}). Nothing is timed."
                )
        if min(abs(loss - math.log(2)) for loss in losses) < ALIKE:
            raise DisagreementError("the loss is ln 2: policy and reference are too alike for a comparison")

    def _gradient_difference(self, expected: list[torch.Tensor]) -> float:
        difference = norm = 0.0
        for parameter, gradient in zip(self.policy.parameters(), expected, strict=True):
            gradient = gradient.to(parameter.device)
            difference += (parameter.grad - gradient).float().square().sum().item()
            norm += gradient.float().square().sum().item()
        return math.sqrt(difference / norm)

    def _build_plain(self) -> Any:
        rows = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
        return trl.DPOTrainer(
            model=self.policy,
            ref_model=self.reference,
            args=self._arguments(precompute_ref_log_probs=False),
            train_dataset=rows,
            processing_class=self._tokenizer,
        )

    def _build_ours(self) -> Any:
        trainer = DPOTrainer(
            model=self.policy,
            args=self._arguments(precompute_ref_log_probs=True),
            data_collator=PairCollator(self._tokenizer.pad_token_id, with_layout=True),
            train_dataset=Dataset.from_list([{name: [0] for name in COLUMNS}]),
            processing_class=self._tokenizer,
        )
        trainer.window = MetricsWindow()  # a run makes it when it begins to train
        trainer.counts = TokenCounts(0, (1, 1))
        trainer.num_rows = 1  # of one in the step: a forward is a whole step here, and its loss has the weight 1
        return trainer

    def _arguments(self, **specific: Any) -> Any:
        return trl.DPOConfig(
            output_dir=self._folder,
            bf16=False,  # the weights have the type that is computed in
            gradient_checkpointing=False,
            max_length=None,
            use_cpu=self.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
            **specific,
        )

    def _compute_reference(self, rows: list[Row]) -> list[Row]:
        """TRL's columns, by its own method."""
        trainer = self.variants[BASELINE].trainer
        batch = send_to_device(trainer.data_collator(rows), self.device)
        chosen, rejected = trainer.compute_ref_log_probs(self.reference, batch)
        return _with_columns(rows, {"ref_chosen_logps": chosen.tolist(), "ref_rejected_logps": rejected.tolist()})

    def _store_reference(self, batches: Batches) -> tuple[Batches, Usage]:
        """Our columns, as a store gives them that was empty before."""
        rows = [row for batch in batches for row in batch]
        table = PairTable.of(Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows]))
        engine = SharedPrefix(self.reference)
        assert engine is not None, "engine=shared_prefix refuses or installs"
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            store = ReferenceStore.open(Path(folder), {"benchmark": "dpo_step"})
            scorer = Scorer(self.reference, self._tokenizer.pad_token_id, len(batches[0]), shares_prompts=True)
            logps, usage = store.complete(table, scorer.iterate_pairs)
        engine.remove()
        sides = [[side[place] for place in range(len(rows))] for side in (logps.chosen, logps.rejected)]
        extended = iter(_with_columns(rows, dict(zip(REFERENCE_COLUMNS, sides, strict=True))))
        return [[next(extended) for _ in batch] for batch in batches], usage


def _larger(old: float, new: float) -> float:
    """The larger of two differences; what is not a number is larger than any."""
    return old if new <= old else new


def _with_columns(rows: list[Row], columns: dict[str, list[Any]]) -> list[Row]:
    return [{**row, **{name: values[place] for name, values in columns.items()}} for place, row in enumerate(rows)]


@torch.no_grad()
def _with_noise(model: Any) -> Any:
    """Moves a model's weights, the same way every time on one kind of device."""
    generator = torch.Generator(model.device).manual_seed(1)
    for parameter in model.parameters():
        scale = NOISE * (parameter.float().std() if parameter.dim() > 1 else 1.0)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
        parameter.add_(noise * scale)
    return model
