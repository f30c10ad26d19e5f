"""The gate of the step benchmark: in half precision a variant may be as wrong as TRL, and hardly more."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers.models.llama import modeling_llama

from benchmarks import gate
from benchmarks.cost import HostCalls, count_flops, count_useful_flops
from benchmarks.scaling_formulas import Pair, count_adapters, forward_flops
from benchmarks.shapes import MODELS, PAIRS, ModelShape
from benchmarks.variants import BASELINE, OURS, PRECOMPUTE, Contest, fused_layers
from prefopt.config.choices import PeftMethod
from prefopt.models.shared_prefix import PairLayout, collate
from tests.liger import install_stub

BATCHES = PAIRS["quick"].build(MODELS["tiny"].vocabulary)


def build_contest(folder, dtype=torch.bfloat16, method=PeftMethod.none):
    return Contest(MODELS["tiny"].build(torch.device("cpu"), dtype), str(folder), method=method)


def check(contest):
    rows, _ = contest.add_reference(BATCHES)
    collated = {name: [contest.collate(name, batch) for batch in rows[name]] for name in contest.variants}
    return gate.check(contest, BATCHES, collated)


@pytest.mark.parametrize("method", [PeftMethod.none, PeftMethod.lora])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_every_variant_is_about_as_far_from_float32_as_trl(tmp_path, dtype, method):
    agreement = check(build_contest(tmp_path, dtype, method))
    assert agreement.compared_with == "float32"
    assert agreement.gradient_limit == gate.FACTOR * agreement.gradient[BASELINE]
    assert agreement.loss_limit >= gate.FACTOR * agreement.loss[BASELINE]
    rounding = torch.finfo(dtype).eps
    for name, error in agreement.gradient.items():
        assert rounding / 10 < error < 10 * rounding, name


@pytest.mark.parametrize("method", [PeftMethod.none, PeftMethod.lora])
def test_in_float32_every_variant_is_compared_with_trls_step(tmp_path, method):
    agreement = check(build_contest(tmp_path, torch.float32, method))
    assert agreement.compared_with == BASELINE
    assert agreement.loss[BASELINE] == agreement.gradient[BASELINE] == 0
    assert 0 < agreement.gradient[OURS] <= agreement.gradient_limit == pytest.approx(1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wrong_positions_are_refused_in_every_precision(tmp_path, monkeypatch, dtype):
    class WrongLayout(PairLayout):
        @classmethod
        def build(cls, lengths, width, *rest):
            layout = PairLayout.build(lengths, width)
            layout.position_ids[0] = torch.arange(layout.num_tokens)  # without a restart after the prompt
            return layout

    monkeypatch.setattr(collate, "PairLayout", WrongLayout)
    with pytest.raises(gate.DisagreementError, match="prefopt differs from"):
        check(build_contest(tmp_path, dtype))


def test_the_step_in_float32_is_that_of_a_float32_copy_and_leaves_the_weights_as_they_were(tmp_path):
    contest = build_contest(tmp_path)
    before = [parameter.clone() for parameter in contest.policy.parameters()]
    found = gate.compute_in_float32(contest, BATCHES[0])
    for old, parameter in zip(before, contest.policy.parameters(), strict=True):
        assert parameter.dtype is torch.bfloat16
        assert torch.equal(old, parameter)
    trainer = copy.copy(contest.variants[BASELINE].trainer)
    trainer.model, trainer.ref_model = contest.policy.float(), contest.reference.float()
    loss = replace(contest.variants[BASELINE], trainer=trainer).differentiate(contest.collate(BASELINE, BATCHES[0]))
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    for gradient, parameter in zip(found.gradient, contest.policy.parameters(), strict=True):
        assert (gradient - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-9


def test_the_step_in_float32_of_an_adapter_is_not_computed_under_autocast(tmp_path):
    contest = build_contest(tmp_path, method=PeftMethod.lora)
    assert contest.variants[PRECOMPUTE].autocast is torch.bfloat16
    found = gate.compute_in_float32(contest, BATCHES[0])
    contest.policy.float()
    plain = replace(contest.variants[BASELINE], autocast=None)
    loss = plain.differentiate(contest.collate(BASELINE, BATCHES[0]))
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    for gradient, parameter in zip(found.gradient, contest.trained, strict=True):
        assert (gradient - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-9


def test_the_adapters_reference_is_its_base_and_their_distance_is_seen_in_the_loss(tmp_path):
    contest = build_contest(tmp_path, torch.float32, PeftMethod.lora)
    assert contest.reference is None
    assert list(contest.policy.peft_config) == ["default"]
    assert {name.split(".")[-3] for name, p in contest.policy.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert abs(check(contest).mean_loss - 0.6931) > gate.ALIKE


@pytest.mark.parametrize("method", [PeftMethod.none, PeftMethod.lora])
def test_fused_layers_are_taken_out_again(tmp_path, monkeypatch, method):
    install_stub(monkeypatch)
    policy = build_contest(tmp_path, torch.float32, method).policy
    places = [vars(modeling_llama), *(vars(module) for module in policy.modules())]
    before = [dict(place) for place in places]
    with fused_layers(policy):
        assert modeling_llama.apply_rotary_pos_emb is not before[0]["apply_rotary_pos_emb"]
        assert sum(place.keys() != old.keys() for place, old in zip(places, before, strict=True)) > 3
    for place, old in zip(places, before, strict=True):
        assert place.keys() == old.keys()
        assert all(place[name] is old[name] for name in old)


@pytest.mark.parametrize("name", ["addmm", "mm", "bmm"])
def test_matrix_products_with_a_type_for_the_result_are_counted(name):
    """As TRL's head calls them on CUDA: torch's own formulas take that type for a shape, and fail."""
    batch = (5,) if name == "bmm" else ()
    left, right, added = (
        torch.zeros(*batch, *shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 3), (3, 4), (2, 4))
    )
    matrices = (added.float(), left, right) if name == "addmm" else (left, right)
    product = getattr(torch.ops.aten, name).dtype
    assert count_flops(lambda: product(*matrices, torch.float32)) == 2 * 2 * 3 * 4 * (5 if batch else 1)


def test_matrix_products_without_a_type_are_counted_as_before():
    left, right, added = torch.ones(2, 3), torch.ones(3, 4), torch.ones(2, 4)
    assert count_flops(lambda: torch.addmm(added, left, right)) == 48
    assert count_flops(lambda: torch.nn.functional.linear(torch.ones(7, 2, 3), torch.ones(4, 3))) == 7 * 48


def test_the_variable_length_kernel_is_counted_by_its_sequences():
    from benchmarks.cost import FORMULAS

    tokens, heads, size = 10, 4, 8
    query, key = torch.zeros(tokens, heads, size), torch.zeros(2 * tokens, 2, size)
    cu_q, cu_k = torch.tensor([0, 4, 10]), torch.tensor([0, 5, 20])
    pairs = 4 * 5 + 6 * 15
    forward, backward = (FORMULAS[getattr(torch.ops.torch_attn, f"_varlen_attn{end}")] for end in ("", "_backward"))
    assert forward(query, key, key, cu_q, cu_k, 6, 15, True) == 2 * 2 * heads * size * pairs
    assert backward(query, query, key, key, query, None, cu_q, cu_k, 6, 15, True) == 5 * 2 * heads * size * pairs
    assert forward._get_raw, "torch would hand it shapes"
    assert backward._get_raw


def test_useful_operations_of_adapters_leave_the_gradients_of_frozen_weights_out(tmp_path):
    shape = ModelShape(3, 64, 4, 2, 16, 176, 100, False)
    pair = Pair(30, 7, 12)
    model = shape.build(torch.device("cpu"), torch.float32)
    policy = Contest(model, str(tmp_path), method=PeftMethod.lora).policy
    linear, attention, head = forward_flops(shape, pair).values()
    expected = 2 * linear + 3 * attention + 2 * head + 6 * count_adapters(shape) * pair.tokens
    assert count_useful_flops(policy, [(pair.prompt, pair.chosen, pair.rejected)]) == pytest.approx(expected)


def test_calls_of_the_host_are_summed_up_by_kind():
    calls = {
        "cudaLaunchKernel": 2103,
        "cuLaunchKernelEx": 360,
        "cudaMemcpyAsync": 80,
        "cudaMemsetAsync": 1,
        "cudaStreamSynchronize": 34,
        "cudaDeviceSynchronize": 1,
        "aten::mm": 344,
    }
    assert HostCalls.of(calls) == HostCalls(launches=2463, copies=81, synchronizations=34)
