"""Both attention forms against a dense one whose mask is written out token by token, in float64."""

from inspect import signature

import pytest
import torch
import torch.nn.attention.varlen

from prefopt.models.shared_prefix import PairLayout, attention
from prefopt.models.shared_prefix.attention import choose_form, split_attention, varlen_attention
from prefopt.models.shared_prefix.layout import VarlenIndices

LENGTHS = [(5, 3, 4), (0, 2, 1), (9, 1, 7), (1, 1, 1), (3, 8, 2)]
LAYOUT = PairLayout.build(LENGTHS, width=16)
CASES = pytest.mark.parametrize(
    "case",
    [
        {},
        {"scaling": 0.7},
        {"window": 1},
        {"window": 4},
        {"window": 100},
        {"softcap": 1.5},
        {"softcap": 1.5, "window": 4, "scaling": 0.7},
    ],
    ids=str,
)
HEADS = pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=["mha", "gqa", "mqa"])
EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""float64 forms differ in the order of sums only."""
SOFTCAPPED = {"rtol": 1e-5, "atol": 3e-6}
"""With softcapping the softmax is float32, as in transformers."""


def tokens() -> list[tuple[int, int, int]]:
    """Pair, segment and position of each token."""
    row = []
    for pair, (prompt, chosen, rejected) in enumerate(LENGTHS):
        row += [(pair, 0, i) for i in range(prompt)]
        row += [(pair, 1, prompt + i) for i in range(chosen)]
        row += [(pair, 2, prompt + i) for i in range(rejected)]
    return row


def may_see(seer, seen, window) -> bool:
    (pair, segment, position), (other_pair, other_segment, other_position) = seer, seen
    if pair != other_pair or other_position > position:
        return False
    if window is not None and position - other_position >= window:
        return False
    return other_segment in (0, segment)


def rejected_sees_chosen(seer, seen, window) -> bool:
    same_pair = seer[0] == seen[0]
    return may_see(seer, seen, window) or (same_pair and seer[1] == 2 and seen[1] == 1 and seen[2] < seer[2])


def rejected_is_blind_to_its_prompt(seer, seen, window) -> bool:
    return may_see(seer, seen, window) and not (seer[1] == 2 and seen[1] == 0)


def dense(query, key, value, *, scaling=None, window=None, softcap=None, rule=may_see):
    """Attention over the whole row with an explicit (T, T) mask."""
    row = tokens()
    mask = torch.tensor([[rule(seer, seen, window) for seen in row] for seer in row])
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def slow_kernel(query, key, value, indices, scaling, window):
    """A variable-length kernel: per segment, causal from the last query and the last key backwards."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    outputs = []
    for segment in range(len(indices.cu_seqlens_q) - 1):
        q = query[indices.cu_seqlens_q[segment] : indices.cu_seqlens_q[segment + 1]]
        k, v = (t[indices.cu_seqlens_k[segment] : indices.cu_seqlens_k[segment + 1]] for t in (key, value))
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        mask = (distance >= 0) & (distance < (window or len(k) + 1))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def random_tensors(heads: tuple[int, int], value_size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads[0], 8), (heads[1], 8), (heads[1], value_size)]
    return [
        torch.randn(1, count, LAYOUT.num_tokens, size, dtype=torch.float64, generator=generator).requires_grad_()
        for count, size in shapes
    ]


def with_gradients(attend, tensors, **case):
    """The output and the gradients of query, key and value under a fixed random upstream gradient."""
    out = attend(*tensors, **case)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad(out, tensors, upstream)]


def split(*tensors, **case):
    return split_attention(*tensors, LAYOUT, **case)


def varlen(*tensors, **case):
    return varlen_attention(*tensors, LAYOUT, kernel=slow_kernel, **case)


@HEADS
@CASES
@pytest.mark.parametrize("form", [split, varlen])
def test_output_and_gradients_are_those_of_the_written_out_mask(form, case, heads):
    tensors = random_tensors(heads)
    found, expected = with_gradients(form, tensors, **case), with_gradients(dense, tensors, **case)
    torch.testing.assert_close(found, expected, **SOFTCAPPED if "softcap" in case else EXACT)


@pytest.mark.parametrize("form", [split, varlen])
def test_values_may_have_another_size_than_keys(form):
    tensors = random_tensors((4, 2), value_size=6)
    torch.testing.assert_close(with_gradients(form, tensors), with_gradients(dense, tensors), **EXACT)


@pytest.mark.parametrize("wrong", [rejected_sees_chosen, rejected_is_blind_to_its_prompt])
@pytest.mark.parametrize("form", [split, varlen])
def test_the_two_classical_errors_would_be_seen(form, wrong):
    tensors = random_tensors((4, 2))
    assert (form(*tensors) - dense(*tensors, rule=wrong)).abs().max() > 0.1


def test_the_kernel_is_not_asked_for_what_it_cannot_do():
    def kernel(*_):
        raise AssertionError

    wide_values = random_tensors((4, 2), value_size=6)
    assert torch.equal(varlen_attention(*wide_values, LAYOUT, kernel=kernel), split(*wide_values))
    tensors = random_tensors((4, 2))
    found = varlen_attention(*tensors, LAYOUT, kernel=kernel, softcap=1.5)
    torch.testing.assert_close(found, split(*tensors, softcap=1.5), rtol=0, atol=0)
    torch.manual_seed(0)
    dropped = varlen_attention(*tensors, LAYOUT, kernel=kernel, dropout=0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, split(*tensors, dropout=0.5), rtol=0, atol=0)
    assert (dropped - split(*tensors)).abs().max() > 0.1


def test_without_cuda_the_form_is_split():
    form, reason = choose_form(torch.device("cpu"), torch.bfloat16, 64, (4, 2))
    assert form == "split"
    assert "cpu" in reason


def test_under_autocast_a_kernel_gets_tensors_of_one_type():
    layout = PairLayout.build([(5, 3, 2)], width=8)
    query, key, value = (torch.randn(1, 2, layout.num_tokens, 8) for _ in range(3))
    seen = []

    def kernel(q, k, v, *_):
        seen.extend([q.dtype, k.dtype, v.dtype])
        return q

    with torch.autocast("cpu", torch.bfloat16):
        varlen_attention(query, key, value.bfloat16(), layout, kernel=kernel)
    assert seen == [torch.bfloat16] * 3


def kernel_of_torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """`torch/nn/attention/varlen.py` of the wheel of torch 2.11.0."""
    indices = VarlenIndices(cu_seq_q, cu_seq_k, max_q, max_k, None)
    assert window_size[1] == 0, "causal"
    return slow_kernel(query, key, value, indices, scale, None if window_size[0] < 0 else window_size[0] + 1)


def kernel_of_torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """The same file of the wheels of torch 2.12.0 and 2.13.0."""
    if not enable_gqa and query.size(1) != key.size(1):
        raise ValueError("Expect query and key/value to have the same number of heads")
    return kernel_of_torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


KERNELS = pytest.mark.parametrize("kernel", [kernel_of_torch_2_11, kernel_of_torch_2_13], ids=lambda k: k.__name__)


@KERNELS
@HEADS
@pytest.mark.parametrize("case", [{}, {"scaling": 0.7}, {"window": 1}, {"window": 4}], ids=str)
def test_the_call_of_the_kernel_follows_the_installed_torch(monkeypatch, kernel, case, heads):
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    tensors = random_tensors(heads)
    found = with_gradients(lambda *qkv, **how: varlen_attention(*qkv, LAYOUT, **how), tensors, **case)
    torch.testing.assert_close(found, with_gradients(dense, tensors, **case), **EXACT)


def test_the_installed_kernel_has_one_of_the_known_signatures():
    known = {tuple(signature(kernel).parameters) for kernel in (kernel_of_torch_2_11, kernel_of_torch_2_13)}
    assert tuple(signature(torch.nn.attention.varlen.varlen_attn).parameters) in known


@KERNELS
def test_a_device_with_the_kernel_computes_with_it(monkeypatch, kernel):
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "HAS_KERNEL", {"cpu"})
    form, reason = choose_form(torch.device("cpu"), torch.bfloat16, 64, (4, 2))
    assert form == "varlen", reason


def test_a_kernel_that_aligns_its_mask_to_the_first_key_is_not_trusted(monkeypatch):
    def top_left(query, key, value, cu_seq_q, cu_seq_k, *lengths, **how):
        rolled = torch.cat([key[cu_seq_k[i] : cu_seq_k[i + 1]].flip(0) for i in range(len(cu_seq_k) - 1)])
        return kernel_of_torch_2_11(query, rolled, value, cu_seq_q, cu_seq_k, *lengths, **how)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", top_left)
    monkeypatch.setattr(attention, "HAS_KERNEL", {"cpu"})
    form, reason = choose_form(torch.device("cpu"), torch.bfloat16, 64, (4, 4))
    assert form == "split"
    assert "is off by" in reason
