"""Checks of a configuration that span several groups, before anything is loaded."""

import os
from typing import Any

from prefopt.choices import FDivergence, PeftMethod, Precision, ReferenceMode, WeightsDtype
from prefopt.schema import DPOAlgorithmConfig, TrainConfig, require


def check(config: TrainConfig) -> None:
    """Checks what spans several groups, before anything is loaded.

    Raises:
        UserError: With the settings to change.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    launched = "LOCAL_RANK" in os.environ
    stage = config.deepspeed.stage
    require(
        stage is None or launched,
        f"deepspeed: ZeRO stage {stage} needs a distributed launch, and this is a single process. "
        "Start with torchrun --nproc-per-node <n> -m prefopt.train ..., or set deepspeed=none.",
    )
    require(
        stage is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"),
        "ACCELERATE_USE_CPU is set in the environment: it would silently switch DeepSpeed off. Unset it.",
    )
    require(
        world_size == 1,
        f"WORLD_SIZE is {world_size}: this version trains on one process. Start it with one.",
    )
    _check_algorithm(config)
    require(
        config.trainer.eval_every is None or config.data.held_out is not None or config.data.held_out_fraction > 0,
        "trainer.eval_every is set, but nothing is held out: set data.held_out or data.held_out_fraction > 0.",
    )
    _check_precision(config)
    _check_effect(config)


def _check_precision(config: TrainConfig) -> None:
    dtype, precision, method = config.model.dtype, config.trainer.precision, config.peft.method
    require(
        method is not PeftMethod.qlora or precision is Precision.bf16,
        "peft=qlora computes in bf16: set trainer.precision=bf16.",
    )
    require(
        method is not PeftMethod.none or dtype is WeightsDtype.fp32,
        f"model.dtype={dtype.name} with peft=none: updates of full fine-tuning are too small for bf16 weights and "
        "would be lost. Set model.dtype=fp32 (with trainer.precision=bf16 for speed), or peft=lora.",
    )
    require(
        dtype is not WeightsDtype.bf16 or precision is Precision.bf16,
        "model.dtype=bf16 with trainer.precision=fp32: set trainer.precision=bf16, or model.dtype=fp32.",
    )


def _check_effect(config: TrainConfig) -> None:
    """Refuses settings that were given, but that nothing reads because what they belong to is off."""
    algorithm, peft = config.algorithm, config.peft
    is_dpo = isinstance(algorithm, DPOAlgorithmConfig)
    owners: list[tuple[Any, str, str, bool]] = [
        (config.engine, "engine", "name", is_dpo),
        (config.reference, "reference", "mode", is_dpo),
        (config.trainer, "trainer", "tokens_per_device", is_dpo),
        (config.trainer, "trainer", "batch_order", is_dpo),
        (config.reference, "reference", "path", is_dpo and config.reference.mode is ReferenceMode.store),
        (config.data, "data", "held_out_fraction", config.data.held_out is None),
        (config.deepspeed, "deepspeed", "offload_optimizer", config.deepspeed.stage is not None),
    ]
    owners += [(peft, "peft", name, peft.method is not PeftMethod.none) for name in ("r", "alpha", "dropout")]
    owners.append((peft, "peft", "target_modules", peft.method is not PeftMethod.none))
    if isinstance(algorithm, DPOAlgorithmConfig):
        losses = set(algorithm.loss_types)
        moves, alpha = algorithm.sync_ref_model, algorithm.f_divergence_type is FDivergence.alpha_divergence
        owners += [
            (algorithm, "algorithm", "label_smoothing", bool(losses & {"robust", "exo_pair", "aot", "aot_unpaired"})),
            (algorithm, "algorithm", "discopop_tau", "discopop" in losses),
            (algorithm, "algorithm", "f_alpha_divergence_coef", alpha),
            (algorithm, "algorithm", "ref_model_mixup_alpha", moves),
            (algorithm, "algorithm", "ref_model_sync_steps", moves),
        ]
        trained = peft.dropout == 0 or not config.trainer.extra.get("disable_dropout", True)
        require(
            trained,
            f"peft.dropout={peft.dropout} has no effect in DPO, since TRL turns dropout off. "
            "Set it to 0, or trainer.extra.disable_dropout=false.",
        )
    for group, name, setting, is_read in owners:
        default = getattr(type(group)(), setting)
        require(
            is_read or getattr(group, setting) == default,
            f"{name}.{setting}={getattr(group, setting)} has no effect with the other settings. Leave it out.",
        )


def _check_algorithm(config: TrainConfig) -> None:
    algorithm = config.algorithm
    if isinstance(algorithm, DPOAlgorithmConfig):
        require(bool(algorithm.loss_types), "algorithm.loss_type: needs at least one loss, found an empty list.")
        require(
            not (algorithm.sync_ref_model and config.peft.method is not PeftMethod.none),
            "algorithm.sync_ref_model=true needs a reference of its own; with adapters there is none. Set peft=none.",
        )
        require(
            not algorithm.sync_ref_model or config.reference.mode is ReferenceMode.live,
            f"algorithm.sync_ref_model=true with reference={config.reference.mode.name}: a reference that moves "
            "has to be computed in every step. Set reference=live.",
        )
        whole = sorted(set(algorithm.loss_types) & {"sft", "aot", "aot_unpaired"})
        require(
            config.trainer.tokens_per_device is None or not whole,
            f"trainer.tokens_per_device with algorithm.loss_type={', '.join(whole)}: these losses look at a "
            "micro-batch as a whole, so its size must not vary. Set trainer.per_device_batch_size instead.",
        )
        require(
            config.evaluation.pairs is None,
            "evaluation.pairs is for algorithm=sft; with algorithm=dpo give data.held_out.",
        )
