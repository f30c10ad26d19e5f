"""Decides whether a model's prompts are shared, by the configuration, the model, and a trial of the shared forward."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from prefopt.config.choices import EngineName, Precision
from prefopt.config.schema import TrainConfig
from prefopt.models.shared_prefix import flash
from prefopt.models.shared_prefix.attention import UnsupportedAttentionError
from prefopt.models.shared_prefix.engine import LAYOUT, SharedPrefix, find_obstacle, verify
from prefopt.models.shared_prefix.layout import PairLayout
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FORMS = (None, "split")
"""Attention forms in the order of trial: None, the form that suits the device, then the form that always works."""

PROBE = [(37, 21, 13), (5, 9, 17)]
"""Lengths (prompt, chosen, rejected) of the pairs on which a model is tried."""
LIMIT = {Precision.fp32: 3e-5, Precision.bf16: 0.02}
"""Largest accepted mean difference of log-probs from TRL's forward, relative to their mean absolute value."""


def share_prompts(
    model: "PreTrainedModel | PeftModel",
    config: TrainConfig,
    device: torch.device,
    *,
    level: int = logging.INFO,
    is_strict: bool = True,
) -> SharedPrefix | None:
    """Installs the shared-prefix forward if the configuration and the model allow it, and logs the result.

    Args:
        model: A causal language model or a PeftModel, with TRL's fused head.
        config: Read are `engine.name`, `trainer.precision` and `trainer.extra`.
        device: Device on which the model will compute.
        level: Level of the log line; a fallback is a warning, unless this is below INFO.
        is_strict: If `engine=shared_prefix` is impossible, raise an error instead of using TRL's forward.

    Returns:
        The installed forward; None if the model keeps TRL's.

    Raises:
        UserError: `engine=shared_prefix` is impossible and `is_strict`.
    """
    if config.engine.name is EngineName.trl:
        logger.log(level, "engine: trl")
        return None
    obstacle = find_obstacle(model) or _find_obstacle_in_settings(config)
    engine = _install_on_flash(model, config.trainer.precision, device, level) if obstacle is None else None
    for form in FORMS if obstacle is None and engine is None else ():
        engine, obstacle = _install(model, config.trainer.precision, device, form)
        if engine is not None:
            break
    if engine is not None:
        logger.log(level, "engine: shared_prefix, %s", engine)
        return engine
    if config.engine.name is EngineName.shared_prefix and is_strict:
        raise UserError(f"engine=shared_prefix: {obstacle}. Set engine=trl, or engine=auto to let prefopt decide.")
    logger.log(logging.WARNING if level >= logging.INFO else level, "engine: trl, because %s", obstacle)
    return None


def _install_on_flash(
    model: "PreTrainedModel | PeftModel", precision: Precision, device: torch.device, level: int
) -> SharedPrefix | None:
    """Installs the `varlen` form on FlashAttention 3 or 4, if one is installed and passes its trial; else None."""
    for name in flash.installed(device):
        engine = None
        try:
            flash.activate(name)
            with flash.independent():
                reason = flash.differs_with_window(device)
                if reason is None:
                    engine, reason = _install(model, precision, device, None)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, RuntimeError, ValueError, AttributeError, OSError) as error:
            reason = str(error).splitlines()[0]
        if engine is not None and engine.form == "varlen":
            engine.reason = f"{name}; {engine.reason}"
            return engine
        if engine is not None:
            engine.remove()
            reason = engine.reason
        flash.activate(None)
        logger.log(level, "engine: %s is installed and not used, because %s", name, reason)
    return None


def _install(
    model: "PreTrainedModel | PeftModel", precision: Precision, device: torch.device, form: str | None
) -> tuple[SharedPrefix | None, str | None]:
    """Installs and tries an attention form (None: the device's); returns (engine, None), or (None, reason)."""
    engine = SharedPrefix(model, device, torch.bfloat16 if precision is Precision.bf16 else None, form)
    if _is_partitioned(model) or model.device.type != device.type:
        engine.reason += "; not tried beforehand, since DeepSpeed places the weights when training begins"
        return engine, None
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.bf16):
            difference = verify(model, _probe(model))
    except torch.OutOfMemoryError:
        raise
    except UnsupportedAttentionError as error:
        engine.remove()
        return None, str(error)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        engine.remove()
        return None, f"{type(model).__name__} fails on a packed row ({type(error).__name__}: {error})"
    is_reduced = precision is Precision.bf16 or model.dtype is not torch.float32
    limit = LIMIT[Precision.bf16 if is_reduced else Precision.fp32]
    if not difference <= limit:
        engine.remove()
        return None, f"its log-probs would be off by a share of {difference:.2g} on average (at most {limit:g})"
    engine.reason += f"; tried, within a share of {limit:g} of TRL's log-probs"
    return engine, None


def _probe(model: "PreTrainedModel | PeftModel") -> dict[str, Any]:
    """Returns random pairs with the lengths of `PROBE`, in the form in which TRL passes a batch to the model."""
    width = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in PROBE)
    layout = PairLayout.build(PROBE, width)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    input_ids = torch.randint(vocabulary, (2 * len(PROBE), width), generator=generator)
    input_ids[len(PROBE) :] = input_ids[: len(PROBE)].where(_before_completion(width), input_ids[len(PROBE) :])
    lengths = [prompt + chosen for prompt, chosen, _ in PROBE] + [prompt + rejected for prompt, _, rejected in PROBE]
    attention_mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    scored = attention_mask.bool() & ~_before_completion(width).repeat(2, 1)
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": input_ids.masked_fill(~scored, -100),
    }
    return {**{name: tensor.to(model.device) for name, tensor in batch.items()}, LAYOUT: layout.to(model.device)}


def _before_completion(width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor([prompt for prompt, *_ in PROBE])[:, None]


def _find_obstacle_in_settings(config: TrainConfig) -> str | None:
    extra = config.trainer.extra
    if not extra.get("disable_dropout", True):
        return "dropout is on, and both completions would share what it drops from their prompt"
    if extra.get("neftune_noise_alpha"):
        return "trainer.extra.neftune_noise_alpha scales its noise by the length of the row"
    if extra.get("router_aux_loss_coef"):
        return "trainer.extra.router_aux_loss_coef adds a router loss, which would count a shared prompt once"
    return None


def _is_partitioned(model: "PreTrainedModel | PeftModel") -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
