"""Builds TRL's training arguments from the configuration."""

import difflib
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, TrainingArguments

from prefopt.config.choices import Precision
from prefopt.config.extra import named_as_installed
from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed.deepspeed import build_deepspeed
from prefopt.process.errors import UserError, shorten
from prefopt.process.ranks import is_launched
from prefopt.runs.directory import RunDirectory
from prefopt.training.algorithm import Algorithm
from prefopt.training.extra import check_values


def build_arguments(algorithm: Algorithm, config: TrainConfig, run: RunDirectory, size: StepSize) -> TrainingArguments:
    """Returns TRL's training arguments for this run.

    Raises:
        UserError: TRL or transformers refuses a value.
    """
    kind = algorithm.trl_config
    ours = {**_common(config, run, size), **algorithm.trl_fields(config)}
    check_values(kind, config.trainer)
    _check_names(config)
    try:
        arguments = kind(**ours, **named_as_installed(kind, config.trainer.extra))
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=arguments.dataloader_num_workers,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )
        return arguments
    except (ValueError, TypeError, ImportError, OverflowError) as error:
        reason = shorten(str(error) or type(error).__name__, 300)
        known = [name for name in config.trainer.extra if name in reason or name.removeprefix("dataloader_") in reason]
        where = f" (trainer.extra.{', trainer.extra.'.join(known)})" if known else ""
        raise UserError(f"{kind.__name__} refuses these settings{where}: {reason}") from error


def _check_names(config: TrainConfig) -> None:
    """Refuses optimizer and scheduler names that transformers does not know.

    Raises:
        UserError: A name is unknown; the message lists the known ones.
    """
    for key, name, kind in (
        ("optim.name", config.optim.name, OptimizerNames),
        ("optim.scheduler", config.optim.scheduler, SchedulerType),
    ):
        names = [member.value for member in kind]
        if name not in names:
            near = [each for each in names if each.startswith(name)] or difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"{key}={name}: transformers has none of that name. {hint}Allowed: {', '.join(names)}.")


def choose_implementation(optimizer: str, *, on_cuda: bool) -> str:
    """Returns transformers' name of the optimizer's fastest implementation on this device; results are the same."""
    return "adamw_torch_fused" if on_cuda and optimizer == "adamw_torch" else optimizer


def _common(config: TrainConfig, run: RunDirectory, size: StepSize) -> dict[str, Any]:
    trainer, optim = config.trainer, config.optim
    return {
        "output_dir": str(run.checkpoints),
        "seed": config.run.seed,
        "max_length": None,  # examples are truncated, counted and reported at tokenisation
        "per_device_train_batch_size": size.per_device,
        "per_device_eval_batch_size": config.evaluation.batch_size,
        "gradient_accumulation_steps": size.accumulation,
        "num_train_epochs": trainer.num_epochs,
        "max_steps": trainer.max_steps or -1,
        "bf16": trainer.precision is Precision.bf16,
        "use_cpu": not torch.cuda.is_available() and config.deepspeed.stage is None,
        "gradient_checkpointing": trainer.gradient_checkpointing is True,  # `auto` is decided by Fit
        "optim": choose_implementation(optim.name, on_cuda=torch.cuda.is_available()),
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": optim.scheduler,
        "warmup_steps": optim.warmup_ratio,  # transformers reads a value below 1 as a share of all steps
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.adam_beta1,
        "adam_beta2": optim.adam_beta2,
        "adam_epsilon": optim.adam_epsilon,
        "max_grad_norm": optim.max_grad_norm,
        "logging_steps": trainer.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be shown
        "eval_strategy": "no" if trainer.eval_every is None else "steps",
        "eval_steps": trainer.eval_every,
        "save_strategy": "steps",
        "save_steps": trainer.save_every,
        "save_total_limit": None,  # CheckpointSaver removes old checkpoints; it counts complete ones only
        "deepspeed": build_deepspeed(config.deepspeed),
        "accelerator_config": {
            "use_configured_state": is_launched(),  # the state that prefopt.distributed has set up
            "non_blocking": torch.cuda.is_available(),  # otherwise the host waits for each batch to be copied
        },
        # Otherwise DDP regroups gradients after its first step, and a resumed run on 3 ranks sums in another order.
        "ddp_find_unused_parameters": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
    }
