"""Our DPO trainer against plain TRL, and its evaluation against per-pair sums."""

import math

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.choices import LOSS_TYPES
from prefopt.config import load_config
from prefopt.data.loading import load_tokenized, read_splits
from prefopt.evaluation.scoring import Scorer
from prefopt.run_directory import RunDirectory
from prefopt.trainers.arguments import build_dpo_arguments
from prefopt.trainers.dpo import DPOTrainer
from tests.conftest import read_rows


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def build(config, tiny_model, **changes) -> DPOTrainer:
    """Our trainer, as `prefopt.trainers.dpo.run` builds it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = load_tokenized(read_splits(config.data, kind="preference", seed=0), tokenizer, config.data)
    arguments = build_dpo_arguments(config, RunDirectory.of(config))
    for name, value in changes.items():
        setattr(arguments, name, value)
    return DPOTrainer(
        model=load(tiny_model),
        ref_model=load(tiny_model),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.held_out,
        processing_class=tokenizer,
    )


def build_plain(config, tiny_model, pair_files) -> trl.DPOTrainer:
    """TRL's trainer on the rows themselves."""
    keep = ("prompt", "chosen", "rejected")
    train, held_out = (Dataset.from_list([{k: r[k] for k in keep} for r in read_rows(path)]) for path in pair_files)
    return trl.DPOTrainer(
        model=load(tiny_model),
        ref_model=load(tiny_model),
        args=build_dpo_arguments(config, RunDirectory.of(config)),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def move(model, scale: float = 0.02) -> None:
    """Makes the policy differ from the reference, the same way every time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def test_a_run_has_the_losses_and_weights_of_plain_trl(overrides, tiny_model, pair_files):
    config = load_config(overrides)
    ours, plain = build(config, tiny_model), build_plain(config, tiny_model, pair_files)
    assert losses(ours) == losses(plain)
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_of_the_schema_reaches_trl(overrides, tiny_model, pair_files, loss_type):
    smoothing = ["algorithm.label_smoothing=0.1"] if loss_type in ("exo_pair", "robust") else []
    config = load_config([*overrides, f"algorithm.loss_type={loss_type}", "algorithm.beta=0.3", *smoothing])
    values = []
    for trainer in (build(config, tiny_model), build_plain(config, tiny_model, pair_files)):
        move(trainer.model)
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        values.append((loss.item(), norm.item()))
        assert trainer.loss_types == [loss_type]
        assert trainer.beta == 0.3
    assert values[0] == values[1]
    assert values[0][1] > 0


def test_first_loss_is_ln_2_because_policy_and_reference_are_equal(overrides, tiny_model):
    assert losses(build(load_config(overrides), tiny_model))[0] == pytest.approx(math.log(2), abs=1e-6)


def test_eight_pairs_at_once_equal_eight_accumulated(overrides, tiny_model):
    def run(batch: int, accumulation: int):
        config = load_config(
            [
                *overrides,
                f"trainer.per_device_batch_size={batch}",
                f"trainer.gradient_accumulation_steps={accumulation}",
                "trainer.max_steps=2",
            ]
        )
        trainer = build(config, tiny_model)
        return losses(trainer), torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    (one, weights_one), (many, weights_many) = run(8, 1), run(1, 8)
    assert one == pytest.approx(many, rel=1e-5)
    assert (weights_one - weights_many).abs().max() < 1e-4


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_is_the_mean_over_pairs_for_any_batch_size(overrides, tiny_model, batch_size, ld_alpha):
    discount = [] if ld_alpha is None else [f"algorithm.ld_alpha={ld_alpha}"]
    config = load_config([*overrides, *discount, f"evaluation.batch_size={batch_size}"])
    trainer = build(config, tiny_model)
    move(trainer.model)
    found = trainer.evaluate()
    pairs, beta = trainer.eval_dataset, 0.1

    def score(model):
        return Scorer(model, 0, 1).score_pairs(pairs)

    policy, reference = score(trainer.model), score(trainer.ref_model)
    margins = beta * (policy.chosen.logps - reference.chosen.logps)
    margins -= beta * (policy.rejected.logps - reference.rejected.logps)
    assert found["eval_rewards/accuracies"] == pytest.approx((margins > 0).mean(), abs=1e-12)
    assert found["eval_rewards/margins"] == pytest.approx(margins.mean(), rel=1e-4, abs=1e-6)
    assert found["eval_preference_accuracy"] == pytest.approx((policy.margins > 0).mean(), abs=1e-12)
    assert found["eval_logps/chosen"] == pytest.approx(policy.chosen.logps.mean(), rel=1e-5)
    if ld_alpha is None:
        assert found["eval_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    assert trainer.ld_alpha == ld_alpha
    assert trainer._metrics["eval"] == {}
    assert not trainer.precompute_ref_logps


def test_discounted_losses_start_at_ln_2_too(overrides, tiny_model):
    trainer = build(load_config([*overrides, "algorithm.ld_alpha=0.3"]), tiny_model)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_trls_own_evaluation_depends_on_the_batch_size(overrides, tiny_model, pair_files):
    """The reason for ours; when this fails, TRL has mended it."""
    margins = []
    for batch_size in (3, 7):
        trainer = build_plain(load_config([*overrides, f"evaluation.batch_size={batch_size}"]), tiny_model, pair_files)
        move(trainer.model)
        margins.append(trainer.evaluate()["eval_rewards/margins"])
    assert margins[0] != pytest.approx(margins[1], rel=1e-3)
