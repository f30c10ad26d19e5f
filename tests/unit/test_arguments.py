"""From settings to TRL's arguments."""

import dataclasses
from argparse import Namespace

import pytest
import torch
from transformers.training_args import OptimizerNames
from trl import DPOConfig, SFTConfig

from prefopt.choices import AlgorithmName
from prefopt.config import TRAIN, load_config
from prefopt.errors import UserError
from prefopt.run_directory import RunDirectory
from prefopt.trainers import arguments
from prefopt.trainers.arguments import build_dpo_arguments, build_sft_arguments, choose_implementation
from prefopt.trainers.batches import StepSize
from prefopt.trainers.extra import check_extra
from prefopt.trainers.fields import BOUNDS, PASSED, PASSED_TO_SFT, REFUSED, SET_BY
from prefopt.trainers.rehearsal import rehearse


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
        check_extra(DPOConfig, extra)
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
        ("activation_checkpointing_kwargs", 5, "a dict or text or null"),
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
    ],
)
def test_a_further_field_of_the_declared_type_passes(extra):
    check_extra(DPOConfig, extra)


FIELDS = {field.name for kind in (DPOConfig, SFTConfig) for field in dataclasses.fields(kind)}


def test_every_field_of_trl_has_one_decision():
    """A field that a new version of TRL or transformers brings is looked at before anybody can set it."""
    decided = [*REFUSED, *SET_BY, *PASSED, *PASSED_TO_SFT]
    assert sorted(decided) == sorted(FIELDS)
    assert set(BOUNDS) <= {*PASSED, *PASSED_TO_SFT}


@pytest.mark.parametrize("algorithm", ["dpo", "sft"])
def test_no_field_that_prefopt_sets_can_be_set_beside_it(algorithm, monkeypatch):
    kept: dict[str, object] = {}
    name = "DPOConfig" if algorithm == "dpo" else "SFTConfig"
    monkeypatch.setattr(arguments, name, lambda **fields: kept.update(fields) or Namespace(**NO_WORKERS))
    monkeypatch.setattr(arguments, "check_extra", lambda *_: None)
    build(f"algorithm={algorithm}")
    assert kept
    assert not set(kept) & {*PASSED, *PASSED_TO_SFT}


NO_WORKERS = {f"dataloader_{name}": None for name in ("persistent_workers", "prefetch_factor")} | {
    "dataloader_num_workers": 0
}


def test_a_setting_that_decides_a_field_exists_and_is_named():
    known = {*TRAIN.setting_names(), *TRAIN.group_names()}
    for field, setting in SET_BY.items():
        named = [word.rstrip(",").partition("=")[0] for word in setting.split() if "." in word or "=" in word]
        assert all(name in known for name in named or [setting]), (field, setting)
    assert refusal(beta=1) == "trainer.extra.beta: prefopt sets this field itself. Use algorithm.beta."
    assert refusal(logging_strategy="no").endswith("Use trainer.log_every.")


def test_what_is_refused_says_why():
    for name in ("push_to_hub", "hub_token", "resume_from_checkpoint", "data_seed", "eval_on_start"):
        assert refusal(**{name: "x"}).startswith(f"trainer.extra.{name}: not available, because ")
    assert "Did you mean optim_args?" in refusal(optim_arg="x")
    assert "prefopt pads pairs itself" in refusal(pad_to_multiple_of=8)
    check_extra(SFTConfig, {"pad_to_multiple_of": 8})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dataloader_num_workers", 100_000, "must be from 0 to 256, found 100000."),
        ("dataloader_prefetch_factor", 10**9, "must be from 1 to 1,024, found 1000000000."),
        ("neftune_noise_alpha", -1, "must be from 0 to 1,000,000, found -1."),
        ("eval_delay", -1, "must be from 0 to"),
    ],
)
def test_numbers_that_fill_a_machine_or_mean_nothing_are_refused(name, value, expected):
    assert expected in refusal(**{name: value})


def build(*overrides: str) -> object:
    config = load_config(list(overrides))
    build_arguments = build_dpo_arguments if config.algorithm.name is AlgorithmName.dpo else build_sft_arguments
    return build_arguments(config, RunDirectory.of(config), StepSize.of(config, None))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.name=adamw", "optim.name=adamw: transformers has none of that name. Did you mean adamw_torch?"),
        ("optim.scheduler=cosin", "optim.scheduler=cosin: transformers has none of that name. Did you mean cosine?"),
        ("trainer.extra.dataloader_num_workers=-1", "trainer.extra.dataloader_num_workers: must be from 0 to 256"),
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
        (["trainer.extra.optim_args=zz"], "trainer.extra.optim_args: must be <name>=<value>, several of them with"),
        (["trainer.extra.optim_args='a=1'"], "trainer.extra.optim_args: optim.name=adamw_torch does not read a. "),
        (["trainer.extra.optim_args='momentum=0.9,a=1'", "optim.name=sgd"], "optim.name=sgd does not read a. "),
        (["trainer.extra.optim_target_modules=[q]"], "optim.name=adamw_torch does not read it"),
        (["trainer.extra.lr_scheduler_kwargs={a:1}", "optim.scheduler=constant"], "has no arguments of its own"),
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


@pytest.mark.parametrize("value", ["momentum=0.9", "momentum=0", "momentum=0.9,nesterov=true"])
def test_arguments_that_an_optimizer_reads_pass_whatever_their_value(value):
    overrides = ["optim.name=sgd", f"trainer.extra.optim_args='{value}'"]
    rehearse(Trainer(overrides), load_config(overrides))


def test_the_optimizer_in_host_memory_reads_no_arguments_of_its_own():
    overrides = ["trainer.extra.optim_args='momentum=0.9'"]
    trainer = Trainer(overrides)
    trainer.optimizer_cls_and_kwargs = (torch.optim.AdamW, {})
    with pytest.raises(UserError, match="does not read momentum"):
        rehearse(trainer, load_config(overrides))
