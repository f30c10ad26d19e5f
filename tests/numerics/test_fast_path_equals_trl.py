"""Shared prompts and a stored reference against plain TRL: every loss, its gradient, and whole runs."""

import numpy as np
import pytest
import torch

from prefopt.config.choices import LOSS_TYPES
from prefopt.config.load import load_config
from prefopt.models.shared_prefix.collate import PairCollator
from tests.conftest import read_rows, write_rows
from tests.numerics.test_dpo_trainer import PLAIN, build, build_plain, first_batch, losses, move

pytestmark = pytest.mark.slow

FAST = ["engine=shared_prefix", "reference=store"]


@pytest.fixture(scope="module")
def trainers(tiny_model, pair_files, tmp_path_factory):
    """Our trainer and TRL's on the same short pairs; tests set their losses.

    Short, because a float32 sum of 700 nats is good to 6e-5, which discopop multiplies by beta / tau = 2.
    """
    root = tmp_path_factory.mktemp("runs")
    pair_files = [write_rows(root / path.name, [shorten(row) for row in read_rows(path)]) for path in pair_files]
    common = ["model=hf", f"model.path={tiny_model}", "data=files", f"data.train={pair_files[0]}", "logger=none"]
    common += [f"data.held_out={pair_files[1]}", f"run.root={root}", "trainer.per_device_batch_size=5"]
    fast, plain = load_config([*common, *FAST, "run.name=fast"]), load_config([*common, *PLAIN, "run.name=plain"])
    return build(fast), build_plain(plain, tiny_model, pair_files)


def shorten(row: dict) -> dict:
    def cut(messages):
        return [{**messages[0], "content": messages[0]["content"][:60]}]

    return {**row, "chosen": cut(row["chosen"]), "rejected": cut(row["rejected"])}


def loss_and_gradient(trainer, rows) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_of_every_loss(trainers, loss_type, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(trainers[0].train_dataset), size=int(rng.integers(3, 8)), replace=False).tolist()
    states = [{k: v.clone() for k, v in trainer.model.state_dict().items()} for trainer in trainers]
    found = []
    for trainer, state in zip(trainers, states, strict=True):
        monkeypatch.setattr(trainer, "loss_types", [loss_type])
        monkeypatch.setattr(trainer, "label_smoothing", 0.1 if loss_type in ("exo_pair", "robust") else 0.0)
        trainer.model.load_state_dict(state)
        move(trainer.model)
        found.append(loss_and_gradient(trainer, rows))
    for trainer, state in zip(trainers, states, strict=True):
        trainer.model.load_state_dict(state)
    (loss, gradient), (expected_loss, expected) = found
    assert expected.norm() > 0
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-7)
    assert (gradient - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    "variant",
    [
        [],
        ["algorithm.ld_alpha=0.3"],
        ["algorithm.use_weighting=true"],
        ["algorithm.f_divergence_type=js_divergence"],
        ["algorithm.loss_type=[sigmoid,sft]"],
        ["trainer.gradient_checkpointing=true"],
        # One pair a forward: 11 even steps. TRL would give a short last forward the weight of a full one.
        ["trainer.per_device_batch_size=1", "trainer.gradient_accumulation_steps=2"],
    ],
)
def test_a_run_of_fifty_steps_has_the_losses_of_plain_trl(overrides, tiny_model, pair_files, variant):
    length = ["trainer.max_steps=50" if not variant else "trainer.max_steps=8", "optim.learning_rate=3e-4"]
    ours = losses(build(load_config([*overrides, *FAST, *length, *variant])))
    plain = losses(build_plain(load_config([*overrides, *PLAIN, *length, *variant]), tiny_model, pair_files))
    assert len(ours) == len(plain)
    assert np.abs(np.array(ours) - np.array(plain)).max() < 1e-4
    assert plain[-1] != pytest.approx(plain[0], rel=1e-2)


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_adapters_have_the_losses_of_trls_forward(overrides, peft):
    adapter = [f"peft={peft}", "peft.r=4", "optim.learning_rate=5e-3"]
    fast, plain = (losses(build(load_config([*overrides, *how, *adapter]))) for how in (FAST, PLAIN))
    assert fast == pytest.approx(plain, rel=1e-4)
    assert fast[-1] < 0.69


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("peft", ["none", "lora"])
def test_stored_reference_log_probs_equal_live_ones(overrides, ld_alpha, peft):
    discount = [] if ld_alpha is None else [f"algorithm.ld_alpha={ld_alpha}"]
    stored, live = (build(load_config([*overrides, *discount, f"peft={peft}", *how])) for how in (FAST, PLAIN))
    rows = list(range(len(stored.train_dataset)))
    collate = PairCollator(0)
    batch = collate([live.train_dataset[row] for row in rows])
    expected = live.compute_ref_log_probs(live.ref_model or live.model, batch)
    found = stored.compute_ref_log_probs(None, collate([stored.train_dataset[row] for row in rows]))
    for ours, values in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, values, rtol=1e-6)


def test_no_reference_means_zeros(overrides):
    trainer = build(load_config([*overrides, "reference=none", "algorithm.loss_type=sigmoid_norm"]))
    batch = first_batch(trainer)
    chosen, rejected = trainer.compute_ref_log_probs(None, batch)
    assert chosen.abs().sum() == rejected.abs().sum() == 0
    assert len(chosen) == len(rejected) == 4
    assert trainer.ref_model is None
    assert trainer.compute_loss(trainer.model, batch).item() != pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.parametrize("how", [["engine=shared_prefix", "reference=live"], ["engine=trl", "reference=store"], FAST])
def test_held_out_metrics_do_not_depend_on_engine_or_reference(overrides, how):
    found, expected = (build(load_config([*overrides, *h])) for h in (how, PLAIN))
    move(found.model), move(expected.model)
    assert found.evaluate() == pytest.approx(expected.evaluate(), rel=1e-4, abs=1e-6)
