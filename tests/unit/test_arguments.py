"""From settings to TRL's arguments."""

import dataclasses
import inspect
from argparse import Namespace
from typing import get_type_hints

import pytest
import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from trl import DPOConfig, SFTConfig

from prefopt.algorithms import load_algorithm
from prefopt.config.algorithms import ALGORITHMS
from prefopt.config.extra import check_fields, named_as_installed
from prefopt.config.fields import (
    BOUNDS,
    COMPILERS,
    FORMER_NAMES,
    PASSED,
    RECOMPUTATION,
    REFUSED,
    SET_BY,
)
from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import typed
from prefopt.config.step_size import StepSize
from prefopt.config.trainer import TrainerConfig
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.training import arguments
from prefopt.training.arguments import build_arguments, choose_implementation
from prefopt.training.extra import check_values
from prefopt.training.rehearsal import SCHEDULES, rehearse


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


def check_extra(extra: dict[str, object], *, sft: bool = False, **trainer: object) -> None:
    check_fields(ALGORITHMS["sft" if sft else "dpo"], extra)
    check_values(SFTConfig if sft else DPOConfig, TrainerConfig(extra=extra, **trainer))


def refusal(**extra: object) -> str:
    with pytest.raises(UserError) as error:
        check_extra(extra)
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
    check_extra(extra)


OWN_FIELDS = [name for schema in ALGORITHMS.values() for name in schema.own_fields]
FIELDS = {field.name for kind in (DPOConfig, SFTConfig) for field in dataclasses.fields(kind)}


def test_every_field_of_trl_has_one_decision():
    """A field that a new version of TRL or transformers brings is looked at before anybody can set it."""
    decided = [*REFUSED, *SET_BY, *PASSED, *OWN_FIELDS]
    newer = {"activation_checkpointing", *FORMER_NAMES}  # than the oldest transformers that is admitted
    assert sorted(decided) == sorted({*FIELDS, *newer})
    assert set(BOUNDS) <= {*PASSED, *OWN_FIELDS}
    of = {"dpo": DPOConfig, "sft": SFTConfig}
    for name, schema in ALGORITHMS.items():
        assert set(schema.own_fields) <= set(get_type_hints(of[name]))
    for kind in of.values():
        assert set(named_as_installed(kind, dict.fromkeys(PASSED))) <= set(get_type_hints(kind))


@pytest.mark.parametrize("algorithm", ["dpo", "sft"])
def test_no_field_that_prefopt_sets_can_be_set_beside_it(algorithm, monkeypatch):
    kept: dict[str, object] = {}
    config = load_config([f"algorithm={algorithm}"])
    kind = lambda **fields: kept.update(fields) or Namespace(**NO_WORKERS)  # noqa: E731
    spec = dataclasses.replace(load_algorithm(config.algorithm), trl_config=kind)
    monkeypatch.setattr(arguments, "check_values", lambda *_: None)
    build_arguments(spec, config, RunDirectory.of(config), StepSize.of(config, None))
    assert kept
    assert not set(kept) & {*PASSED, *OWN_FIELDS}


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
    check_extra({"pad_to_multiple_of": 8}, sft=True)
    with pytest.raises(UserError, match="disable_dropout: not available, because TRL leaves dropout on"):
        check_extra({"disable_dropout": True}, sft=True)


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


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"torch_compile_mode": "foo"}, "torch_compile_mode: must be default or lite or reduce-overhead or max-auto"),
        ({"torch_compile_backend": "foo"}, "must be inductor or cudagraphs or aot_eager or eager, found 'foo'."),
        (
            {"torch_compile": False, "torch_compile_mode": "default"},
            "torch_compile_mode=default: has no effect with trainer.extra.torch_compile=false. Leave one of them out.",
        ),
        ({"torch_compile_mode": "default", "torch_compile_backend": "eager"}, "only inductor has modes"),
        ({"activation_checkpointing_kwargs": {"foo": 1}}, "kwargs: has no foo. Allowed: use_reentrant, "),
        ({"activation_checkpointing_kwargs": '{"reentrant": true}'}, "has no reentrant. Did you mean use_reentrant?"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": 1}}, "use_reentrant must be true or false, found 1."),
        ({"activation_checkpointing_kwargs": {"every_n_layers": 0}}, "every_n_layers must be from 1 to 1,024, found"),
        (
            {"activation_checkpointing_kwargs": {"determinism_check": "x"}},
            "determinism_check must be default or none, found 'x'.",
        ),
        (
            {"activation_checkpointing_kwargs": {"debug": True}},
            "read only where use_reentrant is false. Such as "
            "'+trainer.extra.activation_checkpointing_kwargs={use_reentrant:false,debug:true}'",
        ),
        ({"activation_offloading": True}, "activation_offloading=true moves activations from a GPU to host memory"),
        ({"activation_checkpointing_kwargs": {"offload": True}}, "kwargs: offload=true moves activations from a GPU"),
    ],
)
def test_what_only_the_first_step_would_find_out_is_refused_beforehand(extra, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        check_extra(extra, gradient_checkpointing=True)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"torch_compile_mode": "max-autotune"},
        {"torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": "default"},
        {"activation_checkpointing_kwargs": {"use_reentrant": False, "debug": True, "every_n_layers": 2}},
        {"activation_offloading": False},
    ],
)
def test_compiling_and_recomputing_as_torch_knows_them_pass(extra):
    check_extra(extra, gradient_checkpointing="auto")


def test_arguments_of_gradient_checkpointing_without_it_are_refused():
    with pytest.raises(UserError, match=r"has no effect with trainer\.gradient_checkpointing=false"):
        check_extra({"activation_checkpointing_kwargs": {"use_reentrant": False}})


def test_what_compiles_and_recomputes_is_what_torch_and_accelerate_know():
    from accelerate.utils import DynamoBackend
    from torch._dynamo import list_backends
    from torch.utils.checkpoint import checkpoint

    assert set(COMPILERS) <= set(list_backends(exclude_tags=())) & {each.value.lower() for each in DynamoBackend}
    of_torch = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs", "context_fn"}
    assert set(RECOMPUTATION) == of_torch | {"preserve_rng_state", "every_n_layers", "offload"}


def test_an_unknown_field_is_found_before_any_data_are_read():
    with pytest.raises(
        UserError, match=r"^trainer\.extra\.neftune_alpha: DPOConfig has no such field\. Did you mean nef"
    ):
        load_config(["trainer.extra.neftune_alpha=1"])


def build(*overrides: str) -> object:
    config = load_config(list(overrides))
    return build_arguments(
        load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None)
    )


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
        (["trainer.extra.lr_scheduler_kwargs={a:1}"], "optim.scheduler=linear has no arguments of its own"),
        (["trainer.extra.lr_scheduler_kwargs={a:1}", "optim.scheduler=polynomial"], "kwargs={power:2}'."),
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


@pytest.mark.parametrize("name", [each.value for each in SchedulerType])
def test_the_example_for_a_schedule_is_one_that_it_takes(name):
    given = [typed("+trainer.extra.lr_scheduler_kwargs", SCHEDULES[name]).strip("'")] if SCHEDULES[name] else []
    overrides = [f"optim.scheduler={name}", *given]
    evaluating = ["trainer.eval_every=1"] if name in ("reduce_lr_on_plateau", "greedy") else []
    rehearse(Trainer([*overrides, *evaluating]), load_config([*overrides, *evaluating]))


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


@pytest.mark.parametrize(("missing", "told"), [(["head.weight"], []), (["a.bias", "head.weight"], ["a.bias"])])
def test_of_the_weights_that_a_checkpoint_lacks_those_tied_to_loaded_ones_are_no_matter(missing, told, monkeypatch):
    from torch.nn.modules.module import _IncompatibleKeys

    from prefopt.training.durable import DurableTrainer

    class Theirs:
        def _issue_warnings_after_load(self, found: object) -> None:
            assert found == _IncompatibleKeys(told, ["other"])

    class Ours(DurableTrainer, Theirs):
        def __init__(self) -> None:
            self.model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2, bias=False)})
            self.model["head"].weight = self.model["a"].weight

    Ours()._issue_warnings_after_load(_IncompatibleKeys(missing, ["other"]))
