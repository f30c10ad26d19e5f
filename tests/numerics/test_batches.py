"""Batches by tokens and by length: what an optimizer step computes, and what the records say."""

from itertools import islice

import numpy as np
import pytest
import torch

from prefopt.config.load import load_config
from prefopt.data.steps import ROWS
from prefopt.process.errors import UserError
from prefopt.storage.files import read_lines
from prefopt.train import main as train
from tests.numerics.test_dpo_trainer import PLAIN, build, build_plain, move

BY_TOKENS = ["trainer.tokens_per_device=450", "trainer.gradient_accumulation_steps=3"]


SHORT_LAST = ["trainer.gradient_accumulation_steps=2"]
"""22 pairs in steps of 8: the third has 6, spread over two forwards."""


def take_step(trainer, index: int) -> tuple[list[int], list[int], float, torch.Tensor, dict]:
    """Rows of a step, pairs of each of its forwards, loss, gradient and mean metrics, as transformers computes it."""
    move(trainer.model)
    trainer.model.train()
    accumulation = trainer.args.gradient_accumulation_steps
    trainer.state.global_step = index
    batches = islice(trainer.get_train_dataloader(), index * accumulation, None)
    samples, _ = trainer.get_batch_samples(batches, accumulation, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    rows = [row for batch in samples for row in batch[ROWS]]
    loss = sum(trainer.training_step(trainer.model, batch).item() for batch in samples)
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return rows, [len(batch["input_ids"]) // 2 for batch in samples], loss, gradient, trainer.window.close()


@pytest.mark.parametrize(("settings", "index"), [(BY_TOKENS, 0), (SHORT_LAST, 0), (SHORT_LAST, 2)])
def test_a_step_is_the_mean_over_its_pairs_however_they_are_spread(overrides, tiny_model, pair_files, settings, index):
    trainer = build(load_config([*overrides, *settings]))
    trainer.create_optimizer()
    rows, sizes, loss, gradient, means = take_step(trainer, index)
    assert len(rows) == sum(sizes)
    if settings is BY_TOKENS:
        assert len(set(sizes)) > 1

    whole = build_plain(load_config([*overrides, *PLAIN, "run.name=whole"]), tiny_model, pair_files)
    move(whole.model)
    whole.model.train()
    expected = whole.compute_loss(whole.model, whole.data_collator([whole.train_dataset[row] for row in rows]))
    expected.backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in whole.model.parameters() if p.grad is not None])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-5
    names = set(whole._metrics["train"]) - {"num_tokens"}
    assert names == set(means) - {"loss", "num_tokens"}
    for name in names:  # float32 sums over thousands of logits, in another order
        assert means[name] == pytest.approx(whole._metrics["train"][name][0], rel=1e-4, abs=1e-6), name
    assert means["num_tokens"] == whole._metrics["train"]["num_tokens"][0]


@pytest.mark.parametrize("engine", ["shared_prefix", "trl"])
def test_no_batch_exceeds_the_budget_of_computed_tokens(overrides, engine):
    trainer = build(load_config([*overrides, "trainer.tokens_per_device=700", f"engine={engine}"]))
    for batch in trainer.get_train_dataloader():
        computed = batch["input_ids"].numel() if engine == "trl" else batch["pair_layout"].num_tokens
        assert computed <= 700


@pytest.mark.parametrize("batches", [["trainer.batch_order=length_grouped"], BY_TOKENS])
def test_an_epoch_sees_every_pair_once_and_the_records_count_them(overrides, tmp_path, batches):
    train([*overrides, *batches, "trainer.max_steps=null", "trainer.num_epochs=2"])
    records = [r for r in read_lines(tmp_path / "runs" / "test" / "metrics.jsonl") if "split" not in r]
    assert records[-1]["pairs"] == 2 * 22
    counts = np.diff([0, *(record["pairs"] for record in records)])
    assert (counts > 0).all()


def test_a_pair_above_the_budget_is_named_before_the_run_begins(overrides, tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl:\d+ has \d+ tokens"):
        train([*overrides, "trainer.tokens_per_device=20"])
    assert not (tmp_path / "runs" / "test").exists()


def test_a_run_too_long_to_plan_is_refused_before_it_begins(overrides, tmp_path):
    with pytest.raises(UserError, match=r"planned for the whole run, and [\d,]+ epochs of \d+ pairs are more than"):
        train([*overrides, "trainer.tokens_per_device=100000", "trainer.max_steps=1000000000000"])
    assert not (tmp_path / "runs" / "test").exists()


@pytest.mark.parametrize("setting", ["trainer.tokens_per_device=100", "trainer.batch_order=length_grouped"])
def test_demonstrations_have_no_use_for_them(setting):
    with pytest.raises(UserError, match="has no effect"):
        load_config(["algorithm=sft", "data=brand_voice_sft", setting])
