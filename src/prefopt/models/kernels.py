"""Fused layers from Liger on CUDA: RMSNorm, rotary embedding and gated MLP of a model, each as one kernel.

Liger knows which layers of which architectures it can replace; its losses and its fused cross-entropy are not used.
Before fused layers are used, their values and gradients are compared with those of the model's own layers.
"""

import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

import torch
from transformers.activations import ACT2FN

from prefopt.config.choices import Kernels, Precision
from prefopt.config.schema import TrainConfig
from prefopt.models.modes import evaluating
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

WITHOUT_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False, "layer_norm": False}
"""Options of Liger that are off: its losses would replace the head that TRL uses, its LayerNorm that of torch."""
LIMITS = {Precision.fp32: (3e-5, 1e-3), Precision.bf16: (0.02, 0.2)}
"""Largest accepted differences (log-probs, gradient) between fused and own layers.

Log-probs: mean absolute difference divided by mean absolute value, with the limits of shared prompts. Gradient: norm
of the difference divided by the norm. In bf16, two correct orders of summation differ by 0.07, a wrong kernel by 1.
"""
INSTALL = "Install it: pip install 'prefopt[gpu]'"


class FusedLayers:
    """The fused layers of one model.

    Modules of the model are changed in place. The rotary embedding is a function in the architecture's source file and
    not a module, so it is replaced for every model of that architecture in this process, for tensors on the type of
    `device` only. Liger also replaces classes in that file; these are restored at once, so that models loaded later
    are unchanged.

    Attributes:
        num_modules: Number of modules whose forward was replaced.
        functions: Names of the functions that were replaced.
        problem: Why the fused layers must not be used; None if they may.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", device: torch.device) -> None:
        """Replaces the layers that Liger knows.

        Args:
            model: A causal language model, or a PeftModel around one, whose architecture Liger knows.
            device: Device on which the model will compute.
        """
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

        causal = _causal(model)
        modules = [(module, dict(vars(module))) for module in causal.modules()]
        files = [(file, dict(vars(file))) for file in _files(causal)]
        children = [(module, dict(module._modules)) for module in causal.modules()]
        activations = dict(ACT2FN.items())  # `ACT2FN[name]` would create an instance
        try:
            _apply_liger_kernel_to_instance(causal, **WITHOUT_LOSSES)
        except BaseException:
            for owner, before in (*modules, *files):
                for change in _changes(owner, before):
                    change.undo()
            raise
        finally:
            has_swapped = any(module._modules != before for module, before in children)
            has_swapped |= dict(ACT2FN.items()) != activations
            for module, before in children:
                module._modules.update(before)
            ACT2FN.update(activations)
        self._attributes = [change for module, before in modules for change in _changes(module, before)]
        self._globals = [change for file, before in files for change in _changes(file, before)]
        for change in self._globals:
            change.restrict(device)
        self._globals = [change for change in self._globals if change.is_in_force()]
        self.num_modules = sum(change.name == "forward" for change in self._attributes)
        self.functions = sorted({change.name for change in self._globals})
        self.problem: str | None = None
        if any(change.owner is causal for change in self._attributes):
            self.problem = "liger-kernel replaces the model's own forward, on which TRL's head depends"
        elif has_swapped:
            self.problem = "liger-kernel puts other modules in the place of the model's own, which was undone"
        elif not self.num_modules:
            self.problem = f"liger-kernel replaces no layer of {type(causal).__name__}"

    def __str__(self) -> str:
        replaced = " and ".join([f"{self.num_modules} modules", *self.functions])
        return f"liger {version('liger-kernel')}, {replaced}"

    def remove(self) -> None:
        """Restores the model's own layers and the functions of its architecture."""
        for change in (*self._attributes, *self._globals):
            change.undo()
        self._attributes, self._globals = [], []


class _Change:
    """A changed attribute of a torch module or of a Python module (`owner`), which can be restored."""

    def __init__(self, owner: torch.nn.Module | ModuleType, name: str, before: dict[str, object]) -> None:
        self.owner, self.name = owner, name
        self._was_there, self._before = name in before, before.get(name)

    def undo(self) -> None:
        if self._was_there:
            vars(self.owner)[self.name] = self._before
        else:
            vars(self.owner).pop(self.name, None)

    def is_in_force(self) -> bool:
        return vars(self.owner).get(self.name) is not self._before

    def restrict(self, device: torch.device) -> None:
        """Restricts a replaced function to one type of device; undoes the change if it is of anything else."""
        found, before = vars(self.owner)[self.name], self._before
        if isinstance(found, FunctionType) and callable(before) and not isinstance(before, type | _OnDevice):
            vars(self.owner)[self.name] = _OnDevice(device.type, found, before)
        else:  # a class, or a function that was replaced for an earlier model
            self.undo()


class _OnDevice:
    """A function that calls the fused one for tensors on one type of device, and the model's own for others."""

    def __init__(self, device_type: str, fused: Callable[..., object], own: Callable[..., object]) -> None:
        self._device_type, self._fused, self._own = device_type, fused, own

    def __call__(self, first: torch.Tensor, *args: object, **kwargs: object) -> object:
        function = self._fused if first.device.type == self._device_type else self._own
        return function(first, *args, **kwargs)


def check_kernels(config: TrainConfig) -> None:
    """Refuses `engine.kernels=liger` on a machine that cannot run it, before anything is loaded."""
    if config.engine.kernels is not Kernels.liger:
        return
    obstacle = _find_obstacle_on_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if obstacle is not None:
        raise _refusal(obstacle)


def fuse_layers(
    model: "PreTrainedModel | PeftModel",
    config: TrainConfig,
    device: torch.device,
    *,
    level: int = logging.INFO,
    is_strict: bool = True,
) -> FusedLayers | None:
    """Replaces a model's layers by fused ones if configuration, machine and model allow it, and logs the result.

    Call it before `share_prompts`, so that the shared forward is tried with the layers with which it will run.

    Args:
        model: A causal language model or a PeftModel.
        config: Read are `engine.kernels` and `trainer.precision`.
        device: Device on which the model will compute.
        level: Level of the log line; kernels that fail are a warning, unless this is below INFO.
        is_strict: If `engine.kernels=liger` is impossible, raise an error instead of using the model's own layers.

    Returns:
        The fused layers; None if the model keeps its own.

    Raises:
        UserError: `engine.kernels=liger` is impossible and `is_strict`.
    """
    wanted = config.engine.kernels
    if wanted is Kernels.none:
        logger.log(level, "kernels: none")
        return None
    obstacle = _find_obstacle_on_machine(device) or _find_obstacle(model)
    if obstacle is None and wanted is Kernels.auto and not _can_be_tried(model, device):
        obstacle = "they cannot be tried while DeepSpeed places the weights (engine.kernels=liger takes them untried)"
    fallback_level = level
    if obstacle is None:
        layers, found = _install(model, config.trainer.precision, device)
        if layers is not None:
            logger.log(level, "kernels: %s", found)
            return layers
        obstacle, fallback_level = found, logging.WARNING if level >= logging.INFO else level
    if wanted is Kernels.liger and is_strict:
        raise _refusal(obstacle)
    logger.log(fallback_level, "kernels: none, because %s", obstacle)
    return None


def _refusal(obstacle: str) -> UserError:
    return UserError(f"engine.kernels=liger: {obstacle}. Or set engine.kernels=auto to let prefopt decide, or none.")


def _find_obstacle_on_machine(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"there is no CUDA device, and {device.type} cannot run them"
    if find_spec("liger_kernel") is None:
        return f"liger-kernel is not installed. {INSTALL}"
    try:
        import liger_kernel.transformers.monkey_patch  # noqa: F401 (imports Triton, which may be incompatible)
    except (ImportError, RuntimeError, AttributeError) as error:
        return f"the installed liger-kernel cannot be imported ({str(error).splitlines()[0]}). {INSTALL}"
    return None


def _find_obstacle(model: "PreTrainedModel | PeftModel") -> str | None:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    causal = _causal(model)
    if not type(causal).__module__.startswith("transformers.models."):
        return f"{type(causal).__name__} comes with its own code, and liger-kernel knows that of transformers"
    if causal.config.get_text_config() is not causal.config:
        return f"{type(causal).__name__} is not a text-only decoder"
    if causal.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"the installed liger-kernel does not know {type(causal).__name__}"
    return None


def _install(
    model: "PreTrainedModel | PeftModel", precision: Precision, device: torch.device
) -> tuple[FusedLayers | None, str]:
    """Installs and tries the fused layers; returns (layers, description), or (None, reason) if they cannot be used."""
    can_be_tried = _can_be_tried(model, device)
    is_reduced = precision is Precision.bf16 or model.dtype is not torch.float32
    limits = LIMITS[Precision.bf16 if is_reduced else Precision.fp32]
    expected = _measure(model, precision) if can_be_tried else None
    layers = None
    try:
        layers = FusedLayers(model, device)
        problem = layers.problem
        if problem is None and expected is not None:
            problem = _describe_difference(expected, _measure(model, precision), limits)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's errors have no narrower base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"liger-kernel fails on {type(_causal(model)).__name__} ({type(error).__name__}: {first})"
    if problem is None and layers is not None:
        tried = f"tried, log-probs within a share of {limits[0]:g} of the model's own layers"
        untried = "not tried beforehand, since DeepSpeed places the weights when training begins"
        return layers, f"{layers} ({tried if can_be_tried else untried})"
    if layers is not None:
        layers.remove()
    return None, str(problem)


def _measure(model: "PreTrainedModel | PeftModel", precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probs of random tokens, and the gradient of their mean w.r.t. token embeddings and norm weights."""
    causal, device = _causal(model), model.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = causal.config.get_text_config().vocab_size
    input_ids = torch.randint(vocabulary, (2, 48), generator=generator).to(device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 29:] = 0
    embedded: list[torch.Tensor] = []
    handle = causal.get_input_embeddings().register_forward_hook(
        lambda module, args, output: embedded.append(output.requires_grad_())
    )
    try:
        with (
            torch.enable_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.bf16),
            evaluating(model),
        ):
            logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    finally:
        handle.remove()
    logps = logits[:, :-1].float().log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    logps = logps[attention_mask[:, 1:].bool()]
    norms = [parameter for parameter in causal.parameters() if parameter.requires_grad and parameter.dim() == 1]
    gradients = torch.autograd.grad(logps.mean(), [*embedded, *norms], allow_unused=True)
    flat = [gradient.float().flatten() for gradient in gradients if gradient is not None]
    return logps.detach(), torch.cat(flat)


def _describe_difference(
    expected: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor], limits: tuple[float, float]
) -> str | None:
    logps = float((expected[0] - found[0]).abs().sum() / expected[0].abs().sum())
    gradient = float((expected[1] - found[1]).norm() / expected[1].norm())
    if not logps <= limits[0]:
        return f"with liger-kernel log-probs would be off by a share of {logps:.2g} on average (at most {limits[0]:g})"
    if not gradient <= limits[1]:
        return f"with liger-kernel gradients would be off by a share of {gradient:.2g} (at most {limits[1]:g})"
    return None


def _can_be_tried(model: "PreTrainedModel | PeftModel", device: torch.device) -> bool:
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    return not is_partitioned and model.device.type == device.type


def _changes(owner: torch.nn.Module | ModuleType, before: dict[str, object]) -> list[_Change]:
    now = vars(owner)
    names = [name for name, value in now.items() if name not in before or before[name] is not value]
    return [_Change(owner, name, before) for name in (*names, *(before.keys() - now.keys()))]


def _files(causal: "PreTrainedModel") -> list[ModuleType]:
    """Returns the Python modules of transformers in which the layers of a model are defined."""
    names = {type(module).__module__ for module in causal.modules()}
    return [sys.modules[name] for name in sorted(names) if name.startswith("transformers.")]


def _causal(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    return model.get_base_model() if hasattr(model, "peft_config") else model
