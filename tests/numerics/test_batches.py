"""Batches by tokens and by length: what an optimizer step computes, and what the records say."""

import numpy as np
import pytest
import torch

from prefopt.config import load_config
from prefopt.errors import UserError
from prefopt.tracking.metrics import read_metrics
from prefopt.train import main as train
from tests.numerics.test_dpo_trainer import build, move

BY_TOKENS = ["trainer.tokens_per_device=450", "trainer.gradient_accumulation_steps=3"]


def take_step(trainer) -> tuple[list[int], float, torch.Tensor, dict]:
    """Pairs of each micro-batch, loss, gradient and mean metrics of one step, as transformers computes it."""
    move(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    batches = iter(trainer.get_train_dataloader())
    samples, _ = trainer.get_batch_samples(batches, trainer.args.gradient_accumulation_steps, trainer.args.device)
    loss = sum(trainer.training_step(trainer.model, batch).item() for batch in samples)
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    means = {name: float(np.mean(values)) for name, values in trainer._metrics["train"].items()}
    return [len(batch["input_ids"]) // 2 for batch in samples], loss, gradient, means


def test_a_step_is_the_mean_over_its_pairs_however_they_are_spread(overrides):
    trainer = build(load_config([*overrides, *BY_TOKENS]))
    trainer.create_optimizer()
    sizes, loss, gradient, means = take_step(trainer)
    assert len(set(sizes)) > 1
    rows = [row for batch in list(trainer.batches)[:3] for row in batch]
    assert len(rows) == sum(sizes)

    whole = build(load_config([*overrides, "run.name=whole"]))
    move(whole.model)
    whole.model.train()
    expected = whole.compute_loss(whole.model, whole.data_collator([whole.train_dataset[row] for row in rows]))
    expected.backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in whole.model.parameters() if p.grad is not None])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-5
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert means[name] == pytest.approx(whole._metrics["train"][name][0], rel=1e-4)


@pytest.mark.parametrize("engine", ["shared_prefix", "trl"])
def test_no_batch_exceeds_the_budget_of_computed_tokens(overrides, engine):
    trainer = build(load_config([*overrides, "trainer.tokens_per_device=700", f"engine={engine}"]))
    for batch in trainer.get_train_dataloader():
        computed = batch["input_ids"].numel() if engine == "trl" else batch["pair_layout"].num_tokens
        assert computed <= 700


@pytest.mark.parametrize("batches", [["trainer.batch_order=length_grouped"], BY_TOKENS])
def test_an_epoch_sees_every_pair_once_and_the_records_count_them(overrides, tmp_path, batches):
    train([*overrides, *batches, "trainer.max_steps=null", "trainer.num_epochs=2"])
    records = [r for r in read_metrics(tmp_path / "runs" / "test" / "metrics.jsonl") if "split" not in r]
    assert records[-1]["pairs"] == 2 * 22
    counts = np.diff([0, *(record["pairs"] for record in records)])
    assert (counts > 0).all()


def test_a_pair_above_the_budget_is_named_before_the_run_begins(overrides, tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl:\d+ has \d+ tokens"):
        train([*overrides, "trainer.tokens_per_device=20"])
    assert not (tmp_path / "runs" / "test").exists()


@pytest.mark.parametrize("setting", ["trainer.tokens_per_device=100", "trainer.batch_order=length_grouped"])
def test_demonstrations_have_no_use_for_them(setting):
    with pytest.raises(UserError, match="has no effect"):
        load_config(["algorithm=sft", "data=brand_voice_sft", setting])
