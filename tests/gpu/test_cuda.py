"""What only a CUDA device can show."""

import itertools
import json
import warnings

import pytest
import torch

from prefopt.train import main as train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("changes", [[], ["trainer.precision=bf16"], ["peft=lora", "trainer.precision=bf16"]])
def test_a_run_on_cuda_leaves_a_complete_report(overrides, tmp_path, changes):
    train([*overrides, *changes, "trainer.eval_every=3"])
    report = json.loads((tmp_path / "runs" / "test" / "report" / "report.json").read_text())
    assert report["held_out"]["n"] == 7
    assert "cpu" not in report["provenance"]["hardware"].lower()


@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("head_size", [64, 128])
def test_the_variable_length_kernel_aligns_its_causal_mask_to_the_last_query_and_key(heads, window, head_size):
    from prefopt.models.shared_prefix import PairLayout
    from prefopt.models.shared_prefix.attention import split_attention, varlen_attention

    layout = PairLayout.build([(130, 40, 17), (1, 3, 300), (64, 1, 2)], width=400).to("cuda")
    torch.manual_seed(0)
    shapes = [(1, count, layout.num_tokens, head_size) for count in (heads[0], heads[1], heads[1])]
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    found = []
    for form in (varlen_attention, split_attention):
        out = form(*tensors, layout, window=window)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() / expected.abs().max() < 0.03


def test_the_gradient_of_the_gathered_keys_is_deterministic():
    from prefopt.models.shared_prefix import PairLayout

    layout = PairLayout.build([(130, 40, 17), (64, 100, 200)], width=400).to("cuda")
    rows = torch.randn(layout.num_tokens, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grads = []
    for _ in range(5):
        out = rows.index_select(0, layout.varlen.keys)
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(out, rows, torch.randn_like(out))[0])
    assert all(torch.equal(grads[0], grad) for grad in grads)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_held_out_metrics_do_not_depend_on_engine_or_reference_on_cuda(overrides, tmp_path, precision):
    reports = []
    for name, how in (("fast", ["engine=shared_prefix"]), ("plain", ["engine=trl", "reference=live"])):
        train([*overrides, *how, f"run.name={name}", f"trainer.precision={precision}", "trainer.max_steps=2"])
        reports.append(json.loads((tmp_path / "runs" / name / "report" / "report.json").read_text())["held_out"])
    fast, plain = (report["tuned"]["mean_margin"]["value"] for report in reports)
    assert fast == pytest.approx(plain, abs=1e-3 if precision == "fp32" else 5e-2)
    form = json.loads((tmp_path / "runs" / "fast" / "work.json").read_text())["engine"]
    assert form == ("shared_prefix (varlen)" if precision == "bf16" else "shared_prefix (split)")


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("bf16", 0.1)])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo3"])
def test_fused_layers_have_the_losses_and_gradients_of_the_models_own(name, precision, limit):
    pytest.importorskip("liger_kernel")
    from prefopt.config.load import load_config
    from prefopt.models.kernels import fuse_layers
    from tests.tiny_models import RAGGED, SUPPORTED, build, pair_batch, without_layout

    model = build(SUPPORTED[name]).to("cuda")
    batch = {key: value.to("cuda") for key, value in without_layout(pair_batch(RAGGED)).items()}
    config = load_config(["engine.kernels=liger", f"trainer.precision={precision}"])

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = -model(**batch, use_cache=False, fused_lm_head=True).log_probs.float().mean()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = step()
    layers = fuse_layers(model, config, torch.device("cuda"))
    found = step()
    layers.remove()
    assert (found[0] - expected[0]).abs() / expected[0].abs() < limit / 10
    assert (found[1] - expected[1]).norm() / expected[1].norm() < limit


def test_flash_kernels_that_are_installed_agree_with_windows_and_without():
    from prefopt.models.shared_prefix import flash
    from prefopt.models.shared_prefix.attention import choose_form

    device = torch.device("cuda")
    names = flash.installed(device)
    if not names:
        pytest.skip("needs torch 2.13 or later with FlashAttention 3 or 4 installed")
    try:
        for name in names:
            flash.activate(name)
            with flash.independent():
                assert flash.differs_with_window(device) is None
                assert choose_form(device, torch.bfloat16, 128, (8, 2))[0] == "varlen"
    finally:
        flash.activate(None)


@pytest.mark.parametrize("changes", [[], ["peft=lora", "trainer.precision=bf16"]])
def test_what_fits_is_found_on_the_card_and_trains(overrides, tmp_path, changes, capsys):
    train([*overrides, *changes, "trainer.tokens_per_device=auto", "trainer.gradient_checkpointing=auto"])
    fit = json.loads((tmp_path / "runs" / "test" / "provenance.json").read_text())["fit"]
    assert fit["tokens"] > 0
    assert fit["checkpointing"] is False
    assert "of which 10% are left free" in capsys.readouterr().out


def test_a_card_that_is_nearly_full_gets_a_smaller_budget(overrides, monkeypatch):
    from prefopt.config.load import load_config
    from prefopt.training import fit
    from tests.numerics.test_dpo_trainer import build

    config = load_config([*overrides, "trainer.tokens_per_device=auto"])
    trainer = build(config)
    work = fit.Workload.of(trainer)
    with fit.DeviceTrial(trainer) as trial:
        assert trial(work.costliest(work.most), False)
        peak = trial._peak
    held = torch.cuda.memory_allocated()
    total = torch.cuda.mem_get_info()[1]
    monkeypatch.setattr(fit, "HEADROOM", 1 - (held + 0.6 * (peak - held) + 2**21) / total)
    with fit.DeviceTrial(trainer) as trial:
        found = fit.find_fit(work, trial, config)
    assert found.tokens < work.most
    assert torch.cuda.memory_allocated() <= held + 2**21
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_step_that_is_not_logged_waits_for_the_device_twice_at_most(overrides, monkeypatch):
    from prefopt.training.durable import DurableTrainer

    waits, end_step = [], DurableTrainer.end_step

    def end(self, control):
        end_step(self, control)
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))

    monkeypatch.setattr(DurableTrainer, "end_step", end)
    steps = ["trainer.precision=bf16", "trainer.max_steps=8", "trainer.log_every=100", "trainer.save_every=100"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train([*overrides, *steps])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    per_step = [after - before for before, after in itertools.pairwise(waits)][2:-1]  # the first ones warm up
    assert max(per_step) <= 2
