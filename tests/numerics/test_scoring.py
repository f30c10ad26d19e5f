"""The scorer against a slow reference: one sequence at a time, unpadded, float64."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from prefopt.config.schema import ModelConfig
from prefopt.evaluation.scoring import Scorer, completion
from prefopt.models import load


def slow_score(model, prompt: list[int], answer: list[int]) -> float:
    """Sum of log p(token | everything before) over the answer."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logps = model.double()(input_ids=ids).logits.log_softmax(-1)[0]
    return sum(logps[position - 1, ids[0, position]].item() for position in range(len(prompt), ids.shape[1]))


@pytest.fixture(scope="module")
def sequences() -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(0)
    lengths = [(5, 7), (1, 1), (12, 3), (3, 20), (9, 9), (2, 30), (17, 4)]
    return [(rng.integers(3, 2000, p).tolist(), rng.integers(3, 2000, c).tolist()) for p, c in lengths]


def build_scorer(tiny_model, batch_size: int) -> Scorer:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    add_fused_lm_head(model)
    return Scorer(model, pad_token_id=0, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_equal_the_slow_reference_for_any_batch_size(tiny_model, sequences, batch_size):
    scores = build_scorer(tiny_model, batch_size).score([completion(p, c) for p, c in sequences])
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = [slow_score(reference, p, c) for p, c in sequences]
    np.testing.assert_allclose(scores.logps, expected, rtol=1e-6)
    assert scores.lengths.tolist() == [len(c) for _, c in sequences]


def test_padding_and_order_do_not_change_a_score(tiny_model, sequences):
    scorer = build_scorer(tiny_model, 8)
    items = [completion(p, c) for p, c in sequences]
    together, reversed_ = scorer.score(items), scorer.score(items[::-1])
    np.testing.assert_allclose(together.logps, reversed_.logps[::-1], rtol=1e-6)


def test_prompt_tokens_are_not_scored(tiny_model):
    scorer = build_scorer(tiny_model, 1)
    whole = scorer.score([completion([], [5, 6, 7, 8])]).logps[0]
    parts = scorer.score([completion([], [5, 6]), completion([5, 6], [7, 8])]).logps
    assert whole == pytest.approx(parts.sum(), rel=1e-6)


def test_weights_that_are_read_onto_the_device_are_those_that_are_moved_there(tiny_model, monkeypatch):
    config = ModelConfig(path=str(tiny_model))
    assert load.straight_to_device() == {}
    monkeypatch.setattr(load, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert load.straight_to_device() == {"device_map": {"": "cuda:3"}}
    straight = load.load_model(config, placement={"device_map": {"": "cpu"}})
    moved = load.load_model(config)
    assert not any(hasattr(module, "_hf_hook") for module in straight.modules())
    for (name, weight), (other, expected) in zip(straight.named_parameters(), moved.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, expected)
