"""Fused layers: the same losses and gradients, tried before they are trusted, and put back without a trace."""

import json
import logging
from typing import Any

import peft
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama

from prefopt.config.load import load_config
from prefopt.models import kernels
from prefopt.models.kernels import FusedLayers, fuse_layers
from prefopt.models.shared_prefix import share_prompts
from prefopt.process.errors import UserError
from prefopt.train import main as train
from tests import liger
from tests.numerics.test_dpo_trainer import build as build_trainer
from tests.tiny_models import RAGGED, SUPPORTED, build, pair_batch, without_layout

CPU = torch.device("cpu")
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo3", "deepseek_v3")
"""Of the architectures that prompts are shared for, those that liger-kernel 0.8.5 knows and that run on a CPU."""
LAYERS, NORMS = 3, 7


@pytest.fixture(params=["stub", "installed"])
def fused(request, monkeypatch):
    """Liger, on a machine that can have it."""
    if request.param == "stub":
        liger.install_stub(monkeypatch)
    else:
        liger.install_real()
    monkeypatch.setattr(kernels, "_find_obstacle_on_machine", lambda device: None)


@pytest.fixture
def stub(monkeypatch):
    """Installs a stand-in that does something else to a Llama."""

    def install(apply: Any) -> None:
        liger.install_stub(monkeypatch, apply)
        monkeypatch.setattr(kernels, "_find_obstacle_on_machine", lambda device: None)

    yield install
    assert modeling_llama.LlamaRMSNorm is PLAIN[0]
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", PLAIN[2])


PLAIN = (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP, modeling_llama.apply_rotary_pos_emb)


def in_file() -> tuple[Any, ...]:
    return modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP, modeling_llama.apply_rotary_pos_emb


def step(model: Any, batch: dict[str, Any] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of a batch, and the gradient of a sum in which each has another weight."""
    model.zero_grad()
    logps = model(**(batch or without_layout(pair_batch(RAGGED))), use_cache=False, fused_lm_head=True).log_probs
    (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logps.detach(), torch.cat(gradients)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def attributes(model: Any) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in model.modules()]


def names_of_forwards(model: Any) -> list[str]:
    return sorted(type(module).__name__ for module in model.modules() if "forward" in vars(module))


def test_norms_mlps_and_the_rotary_function_are_replaced_and_put_back(fused):
    model = build(SUPPORTED["llama"])
    before, expected = attributes(model), step(model)
    head = names_of_forwards(model)
    layers = FusedLayers(model, CPU)
    assert names_of_forwards(model) == sorted([*head, *["LlamaMLP"] * LAYERS, *["LlamaRMSNorm"] * NORMS])
    assert layers.num_modules == LAYERS + NORMS
    assert layers.functions == ["apply_rotary_pos_emb"]
    assert in_file()[:2] == PLAIN[:2], "models loaded later are as ever"
    assert in_file()[2] is not PLAIN[2]
    layers.remove()
    assert in_file() == PLAIN
    for now, then in zip(attributes(model), before, strict=True):
        assert now.keys() == then.keys()
        assert all(now[name] is then[name] for name in now)
    assert all(torch.equal(a, b) for a, b in zip(step(model), expected, strict=True))


def test_log_probs_and_gradients_are_those_of_the_models_own_layers(fused):
    model = build(SUPPORTED["llama"])
    expected = step(model)
    layers = FusedLayers(model, CPU)
    found = step(model)
    layers.remove()
    assert relative(found[0], expected[0]) < 1e-6
    assert relative(found[1], expected[1]) < 1e-5
    assert not torch.equal(found[1], expected[1]), "something else was computed"


@pytest.mark.parametrize("name", KNOWN)
def test_every_architecture_that_liger_knows_has_the_same_gradients(name, monkeypatch):
    liger.install_real()
    monkeypatch.setattr(kernels, "_find_obstacle_on_machine", lambda device: None)
    model = build(SUPPORTED[name])
    batch = pair_batch(RAGGED)
    plain = step(model, without_layout(batch))
    layers = fuse_layers(model, load_config(["engine.kernels=liger"]), CPU)
    assert share_prompts(model, load_config(["engine=shared_prefix"]), CPU) is not None
    found = step(model, batch)
    layers.remove()
    assert relative(found[0], plain[0]) < 1e-5
    assert relative(found[1], plain[1]) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_fused_layers_has_the_same_gradient(fused, checkpointing):
    model = build(SUPPORTED["llama"])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if checkpointing:
        wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    expected = step(wrapped)
    layers = fuse_layers(wrapped, load_config(["engine.kernels=liger"]), CPU)
    found = step(wrapped)
    layers.remove()
    assert relative(found[1], expected[1]) < 1e-5


def test_the_rotary_function_is_the_models_own_on_another_device(fused):
    model = build(SUPPORTED["llama"])
    layers = FusedLayers(model, torch.device("meta"))
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    cos, sin = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    found = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)
    layers.remove()
    assert all(torch.equal(a, b) for a, b in zip(found, PLAIN[2](query, key, cos, sin), strict=True))


def test_one_model_keeps_its_layers_when_those_of_another_are_removed(fused):
    first, second = build(SUPPORTED["llama"]), build(SUPPORTED["llama"])
    expected = step(second)
    of_first, of_second = FusedLayers(first, CPU), FusedLayers(second, CPU)
    of_first.remove()
    assert relative(step(second)[1], expected[1]) < 1e-5
    of_second.remove()
    assert in_file() == PLAIN


def wrong_norm(model: Any, **wanted: Any) -> None:
    liger.apply_to_llama(model, **wanted)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.offset = 1.0


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 1.05 * grad


def wrong_gradient(model: Any, **wanted: Any) -> None:
    liger.apply_to_llama(model, **wanted)
    mlp = model.model.layers[1].mlp
    mlp.__dict__["forward"] = lambda x: WrongGradient.apply(liger.FusedMLP.forward(mlp, x))


def fails(model: Any, **wanted: Any) -> None:
    liger.apply_to_llama(model, **wanted)
    raise KeyError("out of shared memory")


def replaces_the_head(model: Any, **wanted: Any) -> None:
    liger.apply_to_llama(model)


def does_nothing(model: Any, **wanted: Any) -> None:
    pass


def swaps_modules(model: Any, **wanted: Any) -> None:
    """As Liger does to Nemotron."""
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    ACT2FN["silu"] = torch.nn.ReLU


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (wrong_norm, "log-probs would be off by"),
        (wrong_gradient, "gradients would be off by"),
        (fails, "fails on LlamaForCausalLM (KeyError: 'out of shared memory')"),
        (replaces_the_head, "replaces the model's own forward"),
        (does_nothing, "replaces no layer of LlamaForCausalLM"),
        (swaps_modules, "puts other modules in the place of the model's own"),
    ],
)
def test_a_kernel_that_cannot_be_trusted_is_taken_off_with_a_warning_or_refused(apply, reason, stub, caplog):
    stub(apply)
    model = build(SUPPORTED["llama"])
    before, expected, activation = attributes(model), step(model), type(ACT2FN["silu"])
    with caplog.at_level(logging.INFO):
        assert fuse_layers(model, load_config([]), CPU) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("kernels: none, because ")
    assert reason in record.message
    with pytest.raises(UserError, match=r"engine\.kernels=auto") as refused:
        fuse_layers(model, load_config(["engine.kernels=liger"]), CPU)
    assert reason in str(refused.value)
    assert in_file() == PLAIN
    assert type(ACT2FN["silu"]) is activation
    assert [vars_.keys() for vars_ in attributes(model)] == [vars_.keys() for vars_ in before]
    assert all(torch.equal(a, b) for a, b in zip(step(model), expected, strict=True))


def test_the_choice_is_said_in_one_line(stub, caplog):
    stub(liger.apply_to_llama)
    with caplog.at_level(logging.INFO):
        layers = fuse_layers(build(SUPPORTED["llama"]), load_config([]), CPU)
    layers.remove()
    start = "kernels: liger 0.8.5, 10 modules and apply_rotary_pos_emb (tried, log-probs within a share of 3e-05 of"
    assert [record.message.startswith(start) for record in caplog.records] == [True]


def test_policy_and_live_reference_have_the_same_layers_and_the_run_records_them(overrides, stub, tmp_path):
    stub(liger.apply_to_llama)
    trainer = build_trainer(load_config([*overrides, "reference=live"]))
    forwards = [names_of_forwards(model) for model in (trainer.model, trainer.ref_model)]
    trainer.layers.remove()
    assert forwards[0] == forwards[1]
    assert forwards[0].count("LlamaRMSNorm") == 5
    work = json.loads((tmp_path / "runs" / "test" / "work.json").read_text())
    assert work["kernels"] == "liger 0.8.5, 7 modules and apply_rotary_pos_emb"


def test_none_leaves_every_layer_alone(stub, caplog):
    stub(wrong_norm)
    model = build(SUPPORTED["llama"])
    with caplog.at_level(logging.INFO):
        assert fuse_layers(model, load_config(["engine.kernels=none"]), CPU) is None
    assert [record.message for record in caplog.records] == ["kernels: none"]
    assert not any("offset" in module for module in attributes(model))


@pytest.mark.parametrize(
    ("settings", "is_strict", "is_refused"),
    [([], True, False), (["engine.kernels=liger"], True, True), (["engine.kernels=liger"], False, False)],
)
def test_an_architecture_that_liger_does_not_know_is_refused_by_name_or_left_alone(
    stub, caplog, settings, is_strict, is_refused
):
    """Evaluation is not strict: it measures what another machine has trained."""
    stub(liger.apply_to_llama)
    model, reason = build(SUPPORTED["gpt2"]), "the installed liger-kernel does not know GPT2LMHeadModel"
    if is_refused:
        with pytest.raises(UserError, match=reason):
            fuse_layers(model, load_config(settings), CPU, is_strict=is_strict)
        return
    with caplog.at_level(logging.INFO):
        assert fuse_layers(model, load_config(settings), CPU, is_strict=is_strict) is None
    assert [(r.levelno, r.message) for r in caplog.records] == [(logging.INFO, f"kernels: none, because {reason}")]


def test_layers_that_cannot_be_tried_are_taken_only_when_they_are_asked_for(stub, caplog):
    stub(wrong_norm)
    model = build(SUPPORTED["llama"])
    next(model.parameters()).ds_id = 0  # as ZeRO-3 marks its parts
    with caplog.at_level(logging.INFO):
        assert fuse_layers(model, load_config([]), CPU) is None
        layers = fuse_layers(model, load_config(["engine.kernels=liger"]), CPU)
    layers.remove()
    first, second = (record.message for record in caplog.records)
    assert first.startswith("kernels: none, because they cannot be tried while DeepSpeed places the weights")
    assert "not tried beforehand" in second


def test_a_machine_without_cuda_is_told_before_anything_is_loaded(overrides, tmp_path, fails, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    message = fails(train, [*overrides, "engine.kernels=liger", "model.path=/nowhere"])
    assert "engine.kernels=liger: there is no CUDA device" in message
    assert "engine.kernels=auto" in message
    assert not (tmp_path / "runs" / "test").exists()
    train(overrides)
    assert capsys.readouterr().out.count("kernels: none, because there is no CUDA device, and cpu") == 1


def test_a_model_with_code_of_its_own_is_left_alone(stub, monkeypatch, caplog):
    stub(liger.apply_to_llama)
    model = build(SUPPORTED["llama"])
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.modeling_mine")
    with caplog.at_level(logging.INFO):
        assert fuse_layers(model, load_config([]), CPU) is None
    assert "comes with its own code" in caplog.text
    assert in_file() == PLAIN


def test_a_machine_without_liger_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"not installed. Install it: pip install 'prefopt\[gpu\]'"):
        kernels.check_kernels(load_config(["engine.kernels=liger"]))


def test_an_unknown_kernel_is_refused_with_the_allowed_ones():
    with pytest.raises(UserError, match=r"engine\.kernels: .*auto.*liger.*none"):
        load_config(["engine.kernels=triton"])
