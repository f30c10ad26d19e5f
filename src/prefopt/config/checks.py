"""Checks of a configuration that concern several groups; they run before anything is loaded."""

import os
from importlib.util import find_spec
from typing import Any

from prefopt.config.choices import (
    AUTO,
    OffloadDevice,
    PeftMethod,
    Precision,
    ReferenceMode,
    WeightsDtype,
)
from prefopt.config.extra import check_fields
from prefopt.config.mixture import paths_of
from prefopt.config.ranges import require
from prefopt.config.schema import TrainConfig
from prefopt.process.paths import places
from prefopt.process.ranks import Launch


def check(config: TrainConfig, launch: Launch) -> None:
    """Checks settings of several groups against each other and against the launch of the run.

    Raises:
        UserError: A check failed; the message names the settings to change.
    """
    _check_launch(config, launch)
    check_fields(type(config.algorithm), config.trainer.extra)
    _check_deepspeed(config)
    _check_batch_size(config, launch)
    _check_algorithm(config)
    require(
        config.trainer.keep_best is None or config.trainer.eval_every is not None,
        "trainer.keep_best needs held-out metrics on the way: set trainer.eval_every.",
    )
    metrics, best = config.algorithm.held_out_metrics, config.trainer.keep_best
    require(
        best is None or best in metrics,
        f"trainer.keep_best={best}: no held-out metric of algorithm={config.algorithm.name.value}. "
        f"Allowed: {', '.join(metrics)}.",
    )
    require(
        config.trainer.eval_every is None or config.data.held_out is not None or config.data.held_out_fraction > 0,
        "trainer.eval_every is set, but nothing is held out: set data.held_out or data.held_out_fraction > 0.",
    )
    require(
        config.deepspeed.stage != 3 or not config.model.resize_embeddings,
        "model.resize_embeddings=true with deepspeed.stage=3: rows cannot be added to an embedding that is spread "
        "over ranks. Set deepspeed=zero2, or save the model with a larger embedding first.",
    )
    check_test(config)
    _check_precision(config)
    _check_effect(config)


def check_test(config: TrainConfig) -> None:
    """Refuses test data that another setting names too: they would be looked at without being counted.

    Raises:
        UserError: It names the file and both settings.
    """
    if config.data.test is None:
        return
    test = set(places(paths_of(config.data.test)))
    others = {
        "data.train": config.data.train,
        "data.held_out": config.data.held_out,
        "evaluation.pairs": config.evaluation.pairs,
    }
    for setting, spec in others.items():
        both = sorted(test & set(places(paths_of(spec))))
        require(
            not both,
            f"data.test: {', '.join(both)} is named by {setting} too, and a test set is not looked at before all "
            "choices are made. Name it in one of them. A run is measured on its test data by: "
            "prefopt evaluate run=<folder> split=test",
        )


def _check_launch(config: TrainConfig, launch: Launch) -> None:
    stage = config.deepspeed.stage
    require(
        stage is None or launch.is_launched,
        f"deepspeed: ZeRO stage {stage} needs a distributed launch, and this is a single process. "
        "Start with torchrun --nproc-per-node <n> -m prefopt.train ..., or set deepspeed=none.",
    )
    require(
        stage is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"),
        "ACCELERATE_USE_CPU is set in the environment: it would silently switch DeepSpeed off. Unset it.",
    )
    require(
        launch.num_ranks == 1 or launch.is_launched,
        f"WORLD_SIZE is {launch.num_ranks}, but LOCAL_RANK is not set: start with torchrun, or unset WORLD_SIZE.",
    )


def _check_deepspeed(config: TrainConfig) -> None:
    deepspeed = config.deepspeed
    if deepspeed.stage is None:
        return
    for name in ("tokens_per_device", "gradient_checkpointing"):
        require(
            getattr(config.trainer, name) != AUTO,
            f"trainer.{name}=auto with deepspeed.stage={deepspeed.stage}: DeepSpeed places the weights when training "
            f"begins, so nothing can be tried before. Set trainer.{name} to a value (docs/scaling.md has some).",
        )
    require(
        find_spec("deepspeed") is not None,
        f"deepspeed.stage={deepspeed.stage}: DeepSpeed is not installed. Install it after torch: "
        "DS_BUILD_OPS=0 pip install --no-build-isolation 'prefopt[deepspeed]'.",
    )
    require(
        deepspeed.stage != 3 or config.peft.method is not PeftMethod.qlora,
        "deepspeed.stage=3 with peft=qlora: 4-bit weights cannot be partitioned. Set deepspeed=zero2, or peft=lora.",
    )
    is_adamw = config.optim.name.startswith("adamw_torch")
    require(
        deepspeed.offload_optimizer is OffloadDevice.none or is_adamw,
        f"deepspeed.offload_optimizer=cpu runs DeepSpeed's own AdamW, not optim.name={config.optim.name}. "
        "Set optim.name=adamw_torch.",
    )


def _check_batch_size(config: TrainConfig, launch: Launch) -> None:
    trainer = config.trainer
    if trainer.batch_size is None:
        return
    require(
        trainer.gradient_accumulation_steps == 1,
        f"trainer.batch_size={trainer.batch_size} decides how many forwards make a step: leave out "
        f"trainer.gradient_accumulation_steps={trainer.gradient_accumulation_steps}.",
    )
    require(
        trainer.tokens_per_device is None,
        "trainer.batch_size with trainer.tokens_per_device: a step has a number of pairs or a budget of tokens. "
        "Leave one out.",
    )
    require(
        trainer.batch_size % launch.num_ranks == 0,
        f"trainer.batch_size={trainer.batch_size} does not divide into {launch.num_ranks} ranks. Start another "
        "number of ranks, or set trainer.batch_size to a multiple of it.",
    )


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
    """Refuses settings that differ from their default but have no effect, because their feature is off."""
    algorithm, peft = config.algorithm, config.peft
    has_pairs, has_reference = algorithm.trains_pairs, algorithm.has_reference
    owners: list[tuple[Any, str, str, bool]] = [
        (config.engine, "engine", "name", has_pairs),
        (config.reference, "reference", "mode", has_reference),
        (config.trainer, "trainer", "tokens_per_device", has_pairs),
        (config.trainer, "trainer", "batch_order", has_pairs),
        (config.reference, "reference", "path", has_reference and config.reference.mode is ReferenceMode.store),
        (config.data, "data", "held_out_fraction", config.data.held_out is None),
        (config.deepspeed, "deepspeed", "offload_optimizer", config.deepspeed.stage is not None),
    ]
    owners += [(peft, "peft", name, peft.method is not PeftMethod.none) for name in ("r", "alpha", "dropout")]
    owners.append((peft, "peft", "target_modules", peft.method is not PeftMethod.none))
    owners += [(algorithm, "algorithm", name, is_read) for name, is_read in algorithm.settings_that_are_read().items()]
    for group, name, setting, is_read in owners:
        value, default = getattr(group, setting), getattr(type(group)(), setting)
        require(
            is_read or value == default,
            f"{name}.{setting}={getattr(value, 'name', value)} has no effect with the other settings. Leave it out.",
        )


def _check_algorithm(config: TrainConfig) -> None:
    algorithm = config.algorithm
    algorithm.check(config)
    whole = algorithm.whole_batch_losses
    require(
        config.trainer.tokens_per_device is None or not whole,
        f"trainer.tokens_per_device with algorithm.loss_type={', '.join(whole)}: these losses look at a "
        "micro-batch as a whole, so its size must not vary. Set trainer.per_device_batch_size instead.",
    )
    require(
        not algorithm.trains_pairs or config.evaluation.pairs is None,
        f"evaluation.pairs is for algorithm=sft; with algorithm={algorithm.name.value} give data.held_out.",
    )
