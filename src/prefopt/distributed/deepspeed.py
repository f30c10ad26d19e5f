"""Translates the ZeRO settings of a run into DeepSpeed's configuration and optimizer."""

from typing import Any

import torch

from prefopt.config.choices import OffloadDevice
from prefopt.config.schema import DeepSpeedConfig, OptimConfig
from prefopt.distributed.group import on_main
from prefopt.distributed.native_ops import load_adam

BUCKET_ELEMENTS = 50_000_000
"""Gradient elements that are reduced together. DeepSpeed's default, 500 million, takes 2 GB per rank in float32."""


def build_deepspeed(config: DeepSpeedConfig) -> dict[str, object] | None:
    """DeepSpeed's configuration, None without ZeRO; values of "auto" come from the training arguments."""
    if config.stage is None:
        return None
    zero: dict[str, Any] = {"stage": config.stage, "reduce_bucket_size": BUCKET_ELEMENTS}
    if config.offload_optimizer is OffloadDevice.cpu:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload_parameters is OffloadDevice.cpu:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }


def choose_optimizer(
    config: DeepSpeedConfig, optim: OptimConfig
) -> tuple[type[torch.optim.Optimizer], dict[str, object]] | None:
    """Class and arguments of the optimizer that steps in host memory; None without offload: transformers chooses.

    It uses the parameter groups of transformers, so weight decay applies to the same weights as without offload.

    Raises:
        UserError: DeepSpeed cannot compile the optimizer on this machine.
    """
    if config.offload_optimizer is not OffloadDevice.cpu:
        return None
    on_main(load_adam)
    load_adam()
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    assert optim.learning_rate is not None
    return DeepSpeedCPUAdam, {
        "lr": optim.learning_rate,
        "betas": (optim.adam_beta1, optim.adam_beta2),
        "eps": optim.adam_epsilon,
        "adamw_mode": True,
    }
