"""From settings to TRL's arguments."""

import dataclasses

import pytest
import torch
from transformers.training_args import OptimizerNames
from trl import DPOConfig, SFTConfig

from prefopt.config import load_config
from prefopt.errors import UserError
from prefopt.run_directory import RunDirectory
from prefopt.trainers.arguments import build_dpo_arguments, choose_implementation, rehearse
from prefopt.trainers.batches import StepSize
from prefopt.trainers.extra import REFUSED, check_extra


@pytest.mark.parametrize(
    ("name", "on_cuda", "expected"),
    [
        ("adamw_torch", True, "adamw_torch_fused"),
        ("adamw_torch", False, "adamw_torch"),
        ("adamw_bnb_8bit", True, "adamw_bnb_8bit"),
        ("sgd", True, "sgd"),
    ],
)
def test_adamw_is_fused_on_a_gpu_and_other_optimizers_are_what_they_were(name, on_cuda, expected):
    assert choose_implementation(name, on_cuda=on_cuda) == expected
    assert OptimizerNames(expected)


def refusal(**extra: object) -> str:
    with pytest.raises(UserError) as error:
        check_extra(DPOConfig, extra, {"beta": 0.1})
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("disable_dropout", "x", "true or false"),
        ("disable_dropout", 1, "true or false"),
        ("neftune_noise_alpha", "x", "a number or null"),
        ("neftune_noise_alpha", True, "a number or null"),
        ("torch_empty_cache_steps", 1.5, "a whole number or null"),
        ("optim_args", 5, "text or null"),
        ("lr_scheduler_kwargs", "x", "a dict or text or null"),
        ("lr_scheduler_kwargs", "[1]", "a dict or text or null"),
        ("optim_target_modules", [1], "null or text or a list of text"),
        ("liger_kernel_config", {"rope": 1}, "a dict or null"),
        ("logging_strategy", "x", "one of no, steps, epoch"),
    ],
)
def test_a_further_field_takes_what_trl_declares(name, value, allowed):
    assert refusal(**{name: value}) == f"trainer.extra.{name}: must be {allowed}, found {value!r}."


@pytest.mark.parametrize(
    "extra",
    [
        {"disable_dropout": False},
        {"neftune_noise_alpha": 5},
        {"neftune_noise_alpha": None},
        {"optim_args": "eps=1e-4"},
        {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'},
        {"optim_target_modules": ["q_proj"]},
        {"optim_target_modules": "all-linear"},
        {"logging_strategy": "epoch"},
        {"pad_to_multiple_of": 8},
    ],
)
def test_a_further_field_of_the_declared_type_passes(extra):
    check_extra(DPOConfig, extra, {})


def test_what_is_refused_exists_and_says_why():
    names = {field.name for kind in (DPOConfig, SFTConfig) for field in dataclasses.fields(kind)}
    assert set(REFUSED) <= names
    for name in ("push_to_hub", "hub_token", "resume_from_checkpoint", "data_seed"):
        assert refusal(**{name: "x"}).startswith(f"trainer.extra.{name}: not available, because ")
    assert refusal(beta=1) == "trainer.extra.beta: prefopt sets this field itself. Use its own setting."
    assert "Did you mean optim_args?" in refusal(optim_arg="x")


def build(*overrides: str) -> object:
    config = load_config(list(overrides))
    return build_dpo_arguments(config, RunDirectory.of(config), StepSize.of(config, None))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.name=adamw", "optim.name=adamw: transformers has none of that name. Did you mean adamw_torch?"),
        ("optim.scheduler=cosin", "optim.scheduler=cosin: transformers has none of that name. Did you mean cosine?"),
        ("trainer.extra.dataloader_num_workers=-1", "(trainer.extra.dataloader_num_workers): num_workers option"),
        ("trainer.extra.dataloader_prefetch_factor=2", "(trainer.extra.dataloader_prefetch_factor): "),
    ],
)
def test_what_is_known_when_arguments_are_built_is_refused_then(override, expected):
    with pytest.raises(UserError) as error:
        build(override)
    assert expected in str(error.value)


class Trainer:
    """As much of a trainer as building an optimizer and a schedule needs."""

    optimizer_cls_and_kwargs = optimizer = lr_scheduler = None

    def __init__(self, overrides: list[str]) -> None:
        from transformers import Trainer as Theirs

        self.args = build(*overrides)
        self.model = torch.nn.Linear(2, 2)
        for name in ("create_optimizer", "create_scheduler", "get_decay_parameter_names"):
            setattr(self, name, getattr(Theirs, name).__get__(self))
        self.get_optimizer_cls_and_kwargs = Theirs.get_optimizer_cls_and_kwargs

    def total_steps(self) -> int:
        return 10


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.scheduler=cosine_with_min_lr"], "'+trainer.extra.lr_scheduler_kwargs={min_lr_rate:0.1}'"),
        (["trainer.extra.lr_scheduler_kwargs={a:1}"], "optim.scheduler=linear: cannot be built"),
        (["trainer.extra.optim_args=zz"], "optim.name=adamw_torch: cannot be built"),
        (["optim.name=galore_adamw"], "optim.name=galore_adamw: cannot be built (You need to install"),
    ],
)
def test_an_optimizer_or_a_schedule_that_cannot_be_built_is_refused_before_training(overrides, expected):
    with pytest.raises(UserError) as error:
        rehearse(Trainer(overrides), load_config(overrides))
    assert expected in str(error.value)


def test_a_rehearsal_leaves_no_optimizer_behind_and_its_remedy_works():
    overrides = ["optim.scheduler=cosine_with_min_lr", "+trainer.extra.lr_scheduler_kwargs={min_lr_rate:0.1}"]
    trainer = Trainer(overrides)
    rehearse(trainer, load_config(overrides))
    assert trainer.optimizer is trainer.lr_scheduler is None
