"""One optimizer step of DPO, computed by plain TRL and by prefopt from the same weights.

TRL off CUDA scores every position with its head, prompts and padding included; on CUDA it scores completions only. So
that nobody takes a CPU's head for a gain of prefopt, the `proxy` variants make TRL's head on the CPU do what it does
on CUDA: they replace the name `_use_triton` in `trl.trainer.utils`, which decides nothing else there. The kernel of
the head looks the name up in its own module and computes as before.
"""

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import trl
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from rich.console import Console
from transformers import AutoTokenizer
from trl.trainer import utils as trl_utils

from benchmarks.shapes import COLUMNS, Batches, Row
from prefopt.algorithms.dpo import DPOTrainer
from prefopt.config.choices import PeftMethod
from prefopt.config.load import load_config
from prefopt.config.schema import ModelConfig, PeftConfig
from prefopt.config.step_size import StepSize
from prefopt.data.ragged import PairTable
from prefopt.data.steps import TokenCounts
from prefopt.distributed.preemption import StopRequest
from prefopt.evaluation.scoring import Scorer
from prefopt.models.kernels import FusedLayers
from prefopt.models.load import build_peft_config
from prefopt.models.reference import ReferenceStore, Usage
from prefopt.models.shared_prefix import SharedPrefix
from prefopt.models.shared_prefix.collate import REFERENCE_COLUMNS, PairCollator
from prefopt.process.paths import shipped
from prefopt.runs.directory import RunDirectory
from prefopt.training.context import RunContext

BASELINE, PRECOMPUTE = "trl", "trl_precompute"
OURS = "prefopt"
FUSED = "_liger"
"""Ends the name of a variant with fused layers."""
SIDES = ("chosen", "rejected")
NOISE = 0.1
"""The policy is the reference plus noise of this share of each weight's standard deviation."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute a step.

    Attributes:
        trainer: TRL's trainer or ours, on the common policy.
        is_live: The reference runs in every step; else its log-probs are columns of the batch.
        has_engine: Prompts are shared, by the engine of `prefopt`.
        has_compact_head: TRL's head scores completions only, as it does on CUDA.
        has_fused_layers: Norms, rotary embeddings and MLPs run Liger's kernels.
        autocast: The type that is computed in, where weights have several types.
    """

    name: str
    trainer: Any
    is_live: bool
    has_engine: bool = False
    has_compact_head: bool = False
    has_fused_layers: bool = False
    autocast: torch.dtype | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes the models compute this variant's way; outside of it they are plain."""
        with ExitStack() as stack:
            if self.has_fused_layers:
                models = [model for model in (self.trainer.model, self.trainer.ref_model) if model is not None]
                for model in models:
                    stack.enter_context(fused_layers(model))
            if self.has_compact_head:
                stack.enter_context(mock.patch.object(trl_utils, "_use_triton", return_value=True))
            if self.has_engine:
                stack.callback(SharedPrefix(self.trainer.model).remove)
            yield

    def compute_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch."""
        device = self.trainer.accelerator.device
        inputs = send_to_device(batch, device)  # as the data loader does
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            loss: torch.Tensor = self.trainer.compute_loss(self.trainer.model, inputs)
        return loss

    def differentiate(self, batch: dict[str, Any]) -> torch.Tensor:
        """Adds the gradient of a batch to the policy's, and returns the loss."""
        loss = self.compute_loss(batch)
        self.trainer.accelerator.backward(loss)
        return loss.detach()


@contextmanager
def fused_layers(model: Any) -> Iterator[None]:
    """Puts Liger's layers into a model, as `engine.kernels=liger` does, and takes them out again."""
    layers = FusedLayers(model, model.device)
    assert layers.problem is None, layers.problem
    try:
        yield
    finally:
        layers.remove()


def has_fused_layers(model: Any) -> bool:
    """True where Liger is installed and its kernels run: on CUDA, in a Llama."""
    return model.device.type == "cuda" and model.config.model_type == "llama" and find_spec("liger_kernel") is not None


class Contest:
    """The variants on one model.

    Attributes:
        policy: Trained by every variant; the learning rate is 0, so that it stays what it is.
        reference: What the policy was before noise was added to it; None where the policy has an adapter, whose base
            it is.
        trained: The policy's parameters that have a gradient.
        dtype: Of the weights; with an adapter those of its base.
        variants: By name, `trl` first.
    """

    def __init__(self, model: Any, folder: str, tokenizer: Any = None, method: PeftMethod = PeftMethod.none) -> None:
        """Builds the trainers.

        Args:
            model: Becomes the policy; on the device to measure on.
            folder: For what trainers write.
            tokenizer: Of the model; default: the shipped one, of which random weights need only the padding.
            method: What is trained: all weights, or adapters.
        """
        has_adapter = method is not PeftMethod.none
        self.dtype: torch.dtype = model.dtype
        self.reference = None if has_adapter else copy.deepcopy(model)
        self.policy = _with_adapter(model, method) if has_adapter else _with_noise(model)
        self._tokenizer = tokenizer or AutoTokenizer.from_pretrained(shipped("assets/base_model"))
        self._folder = folder
        # An adapter is in float32 above a base in half precision, so its layers run under autocast, as in training.
        self._autocast = self.dtype if has_adapter and self.dtype is not torch.float32 else None
        self.variants = {variant.name: variant for variant in self._build_variants()}
        self.trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        is_cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=0.0, fused=is_cuda)

    def _build_variants(self) -> list[Variant]:
        live, precomputed, ours = self._build_plain(), self._build_plain(), self._build_ours()
        precomputed.precompute_ref_logps = True
        plain = {BASELINE: (live, True), PRECOMPUTE: (precomputed, False)}
        kept = {"autocast": self._autocast}
        variants = [Variant(name, *how, **kept) for name, how in plain.items()]
        if self.device.type == "cpu":
            names = {BASELINE: "trl_proxy", PRECOMPUTE: "trl_proxy_precompute"}
            variants += [Variant(names[name], *how, has_compact_head=True, **kept) for name, how in plain.items()]
        variants.append(Variant(OURS, ours, False, has_engine=True, **kept))
        if has_fused_layers(self.policy):
            kept["has_fused_layers"] = True
            variants += [Variant(name + FUSED, *how, **kept) for name, how in plain.items()]
            variants.append(Variant(OURS + FUSED, ours, False, has_engine=True, **kept))
        return variants

    @property
    def device(self) -> torch.device:
        device: torch.device = self.policy.device
        return device

    @property
    def beta(self) -> float:
        """Of the loss."""
        beta: float = self.variants[BASELINE].trainer.beta
        return beta

    @property
    def held_bytes(self) -> int:
        """Bytes of the policy, of its gradients, and of the optimizer's states once it has made a step."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        return sum(
            tensor.numel() * tensor.element_size() for tensor in [*self.policy.parameters(), *gradients, *states]
        )

    @property
    def reference_bytes(self) -> int:
        """Bytes of the weights of a reference that is not the policy's own base."""
        parameters = [] if self.reference is None else self.reference.parameters()
        return sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    def release_optimizer(self) -> None:
        """Drops the optimizer's states, which come back with its next step."""
        self.optimizer.state.clear()

    def collate(self, name: str, rows: list[Row]) -> dict[str, Any]:
        """The batch of a variant, made by its own collator."""
        batch: dict[str, Any] = self.variants[name].trainer.data_collator(rows)
        return batch

    def add_reference(self, batches: Batches) -> tuple[dict[str, Batches], Usage]:
        """Returns each variant's rows with the reference log-probs that it reads, and what filling our store took."""
        stored, usage = self._store_reference(batches)
        computed = [self.compute_reference(rows, self._autocast) for rows in batches]
        sources = {True: stored, False: computed}
        return {
            name: batches if variant.is_live else sources[variant.has_engine]
            for name, variant in self.variants.items()
        }, usage

    def _build_plain(self) -> Any:
        rows = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
        return self._build(
            trl.DPOTrainer,
            ref_model=self.reference,
            args=self._arguments(precompute_ref_log_probs=False),
            train_dataset=rows,
        )

    def _build_ours(self) -> Any:
        # Each variant shares prompts and fuses layers itself, and rows bring the reference.
        off = ["engine=trl", "engine.kernels=none", "reference=live"]
        config = load_config([*off, f"run.root={self._folder}", "run.name=prefopt"])
        trainer = self._build(
            DPOTrainer,
            args=self._arguments(precompute_ref_log_probs=True),
            data_collator=PairCollator(self._tokenizer.pad_token_id, with_layout=True),
            train_dataset=Dataset.from_list([{name: [0] for name in COLUMNS} | {"source": ""}]),
            run=RunContext(config, RunDirectory.of(config), StopRequest([]), Console(quiet=True), StepSize(1, 1, 1)),
        )
        trainer.counts = TokenCounts(0, (1, 1))
        trainer.num_rows = 1  # of one in the step: a forward is a whole step here, and its loss has the weight 1
        return trainer

    def _build(self, kind: type[Any], **arguments: Any) -> Any:
        """A trainer on the common policy.

        TRL takes an adapter that it did not make for one that was trained before, and adds a copy of it as the
        reference. Without that copy the reference is the base, as it is for an adapter that TRL made.
        """
        trainer = kind(model=self.policy, processing_class=self._tokenizer, **arguments)
        if "ref" in getattr(self.policy, "peft_config", {}):
            self.policy.delete_adapter("ref")
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

    def compute_reference(self, rows: list[Row], autocast: torch.dtype | None) -> list[Row]:
        """TRL's columns, by its own method."""
        trainer = self.variants[BASELINE].trainer
        batch = send_to_device(trainer.data_collator(rows), self.device)
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            chosen, rejected = trainer.compute_ref_log_probs(self.reference or self.policy, batch)
        return _with_columns(rows, {"ref_chosen_logps": chosen.tolist(), "ref_rejected_logps": rejected.tolist()})

    def _store_reference(self, batches: Batches) -> tuple[Batches, Usage]:
        """Our columns, as a store gives them that was empty before."""
        rows = [row for batch in batches for row in batch]
        table = PairTable.of(Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows]))
        with ExitStack() as stack:
            if self.reference is None:
                stack.enter_context(self.policy.disable_adapter())
            model = self.reference or self.policy
            stack.callback(SharedPrefix(model).remove)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder))
            store = ReferenceStore.open(Path(folder), {"benchmark": "dpo_step"})
            is_bf16 = self._autocast is torch.bfloat16
            scorer = Scorer(model, self._tokenizer.pad_token_id, len(batches[0]), is_bf16, shares_prompts=True)
            logps, usage = store.complete(table, scorer.iterate_pairs)
        sides = [[side[place] for place in range(len(rows))] for side in (logps.chosen, logps.rejected)]
        extended = iter(_with_columns(rows, dict(zip(REFERENCE_COLUMNS, sides, strict=True))))
        return [[next(extended) for _ in batch] for batch in batches], usage


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


@torch.no_grad()
def _with_adapter(model: Any, method: PeftMethod) -> Any:
    """A model with adapters as prefopt makes them by default, moved as far from their base as `_with_noise` moves."""
    policy = get_peft_model(model, build_peft_config(PeftConfig(method=method), ModelConfig(path="random")))
    generator = torch.Generator(policy.device).manual_seed(1)
    for module in policy.modules():
        if isinstance(module, LoraLayer):
            inner, outer = (getattr(module, f"lora_{side}")["default"].weight for side in "AB")
            added = module.scaling["default"] * math.sqrt(len(inner)) * inner.std()  # of a weight, if `outer` were 1
            scale = NOISE * module.get_base_layer().weight.float().std() / added
            noise = torch.randn(outer.shape, generator=generator, device=outer.device, dtype=outer.dtype)
            outer.copy_(noise * scale)
    return policy
