"""Our DPO trainer against plain TRL, and its evaluation against per-pair sums."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from prefopt.algorithms import dpo, load_algorithm
from prefopt.config.choices import LOSS_TYPES
from prefopt.config.load import load_config
from prefopt.config.step_size import StepSize
from prefopt.data.ragged import PairTable
from prefopt.data.steps import COUNTS, ROWS
from prefopt.distributed.preemption import StopRequest
from prefopt.evaluation.scoring import PairScores, Scorer
from prefopt.models.examples import load_examples
from prefopt.runs.directory import RunDirectory
from prefopt.training.arguments import build_arguments
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext
from tests.conftest import read_rows, write_rows

PLAIN = ["engine=trl", "reference=live"]
"""TRL's own forward and reference, with which equality is bitwise."""


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def build(config) -> dpo.DPOTrainer:
    """Our trainer, as a run builds it, with its reference log-probs."""
    config = replace(config, trainer=replace(config.trainer, eval_every=10**9))
    run = RunDirectory.of(config)
    context = RunContext(config, run, StopRequest([]), Console(quiet=True), StepSize.of(config, None))
    trainer = build_trainer(load_algorithm(config.algorithm), context, load_examples(config))
    run.path.mkdir(parents=True, exist_ok=True)
    trainer.prepare()
    return trainer


def build_plain(config, tiny_model, pair_files) -> trl.DPOTrainer:
    """TRL's trainer on the rows themselves."""
    keep = ("prompt", "chosen", "rejected")
    train, held_out = (Dataset.from_list([{k: r[k] for k in keep} for r in read_rows(path)]) for path in pair_files)
    return trl.DPOTrainer(
        model=load(tiny_model),
        ref_model=load(tiny_model),
        args=build_arguments(
            load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None)
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )


def first_batch(trainer) -> dict:
    """The first batch of the first epoch, as `compute_loss` takes it."""
    batch = dict(next(iter(trainer.get_train_dataloader())))
    for name in (ROWS, COUNTS):
        batch.pop(name, None)
    return batch


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
    config = load_config([*overrides, *PLAIN])
    ours, plain = build(config), build_plain(config, tiny_model, pair_files)
    assert losses(ours) == losses(plain)
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_of_the_schema_reaches_trl(overrides, tiny_model, pair_files, loss_type):
    smoothing = ["algorithm.label_smoothing=0.1"] if loss_type in ("exo_pair", "robust") else []
    loss = [f"algorithm.loss_type={loss_type}", "algorithm.beta=0.3"]
    config = load_config([*overrides, *PLAIN, *loss, *smoothing])
    values = []
    for trainer in (build(config), build_plain(config, tiny_model, pair_files)):
        move(trainer.model)
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        values.append((loss.item(), norm.item()))
        assert trainer.loss_types == [loss_type]
        assert trainer.beta == 0.3
    assert values[0] == values[1]
    assert values[0][1] > 0


@pytest.mark.parametrize("how", [PLAIN, ["engine=shared_prefix"]], ids=["plain", "engine"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_held_out_loss_of_every_loss_is_trls(overrides, tiny_model, pair_files, loss_type, how):
    smoothing = ["algorithm.label_smoothing=0.1"] if loss_type in ("exo_pair", "robust") else []
    loss = [f"algorithm.loss_type={loss_type}", "evaluation.batch_size=7", *smoothing]
    ours = build(load_config([*overrides, *how, *loss]))
    plain = build_plain(load_config([*overrides, *PLAIN, *loss]), tiny_model, pair_files)
    for trainer in (ours, plain):
        move(trainer.model)
        trainer.model.eval()
    with torch.no_grad():
        expected = plain.compute_loss(plain.model, dict(next(iter(plain.get_eval_dataloader())))).item()
        assert ours.measure_held_out()["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("how", [PLAIN, ["engine=shared_prefix"], ["reference=live"], ["peft=lora"]])
def test_first_loss_is_ln_2_because_policy_and_reference_are_equal(overrides, how):
    assert losses(build(load_config([*overrides, *how])))[0] == pytest.approx(math.log(2), abs=1e-6)


def test_eight_pairs_at_once_equal_eight_accumulated(overrides):
    def run(batch: int, accumulation: int):
        config = load_config(
            [
                *overrides,
                f"trainer.per_device_batch_size={batch}",
                f"trainer.gradient_accumulation_steps={accumulation}",
                "trainer.max_steps=2",
            ]
        )
        trainer = build(config)
        return losses(trainer), torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    (one, weights_one), (many, weights_many) = run(8, 1), run(1, 8)
    assert one == pytest.approx(many, rel=1e-5)
    assert (weights_one - weights_many).abs().max() < 1e-4


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("how", [PLAIN, ["engine=shared_prefix", "reference=store"]])
def test_evaluation_is_the_mean_over_pairs_for_any_batch_size(overrides, tiny_model, batch_size, ld_alpha, how):
    discount = [] if ld_alpha is None else [f"algorithm.ld_alpha={ld_alpha}"]
    config = load_config([*overrides, *discount, *how, f"evaluation.batch_size={batch_size}"])
    trainer = build(config)
    is_stored = trainer.precompute_ref_logps
    move(trainer.model)
    found = trainer.evaluate()
    pairs, beta = trainer.eval_dataset, 0.1

    def score(model):
        return PairScores.of(Scorer(model, 0, 1).score_pairs(PairTable.of(pairs)))

    base = load(tiny_model)
    add_fused_lm_head(base)
    policy, reference = score(trainer.model), score(base)
    margins = beta * (policy.chosen.logps - reference.chosen.logps)
    margins -= beta * (policy.rejected.logps - reference.rejected.logps)
    assert found["eval_rewards/accuracies"] == pytest.approx((margins > 0).mean(), abs=1e-12)
    assert found["eval_rewards/margins"] == pytest.approx(margins.mean(), rel=1e-4, abs=1e-5)
    assert found["eval_preference_accuracy"] == pytest.approx((policy.margins > 0).mean(), abs=1e-12)
    assert found["eval_logps/chosen"] == pytest.approx(policy.chosen.logps.mean(), rel=1e-5)
    if ld_alpha is None:
        assert found["eval_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    assert trainer.ld_alpha == ld_alpha
    assert trainer._metrics["eval"] == {}
    assert trainer.precompute_ref_logps == is_stored


@pytest.mark.parametrize("how", [PLAIN, ["reference=store"]])
def test_discounted_losses_start_at_ln_2_too(overrides, how):
    trainer = build(load_config([*overrides, "algorithm.ld_alpha=0.3", *how]))
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.fixture
def mixed(tmp_path, overrides):
    """Overrides of a run on pairs, every second of which has a user's turn inside a completion."""

    def write(name, first, count):
        rows = []
        for number in range(first, first + count):
            answer, other = ({"role": "assistant", "content": f"{word} {number}"} for word in ("Yes", "No"))
            asked = {"role": "user", "content": f"Why is it {number}? Tell me all about it."}
            more = [asked, {"role": "assistant", "content": "Because."}] if number % 2 else []
            prompt = [{"role": "user", "content": f"Is it {number}, and not any other number that you know of?"}]
            rows.append({"prompt": prompt, "chosen": [answer, *more], "rejected": [other]})
        return write_rows(tmp_path / name, rows)

    files = [f"data.train={write('train.jsonl', 0, 12)}", f"data.held_out={write('held_out.jsonl', 20, 7)}"]
    return [*overrides, *files, "algorithm.loss_type=[sigmoid,ipo,sft]"]


def test_a_users_turn_inside_a_completion_counts_for_nothing(mixed, tiny_model):
    """The oracle: one pair, one forward of plain transformers, and the sum over the assistant's tokens."""
    trainer = build(load_config([*mixed, *PLAIN]))
    move(trainer.model)
    row = next(row for row in trainer.train_dataset if row["chosen_context"])
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    with torch.no_grad():
        logps = load(tiny_model)(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    start, end = row["chosen_context"]
    kept = [*range(start), *range(end, len(row["chosen_ids"]))]
    assert "Why is it" in trainer.processing_class.decode(row["chosen_ids"][start:end])
    table = PairTable.of(Dataset.from_list([row]))
    model = load(tiny_model)
    add_fused_lm_head(model)
    found = PairScores.of(table.trained(Scorer(model, 0, 1).score_pairs(table))).chosen
    assert found.logps[0] == pytest.approx(logps[len(row["prompt_ids"]) - 1 :][kept].sum().item(), rel=1e-5)
    assert found.lengths[0] == len(kept)


def test_loss_gradients_and_metrics_with_a_users_turn_are_the_same_whoever_computes(mixed):
    found = []
    for how in (PLAIN, ["engine=shared_prefix", "reference=store"]):
        trainer = build(load_config([*mixed, *how]))
        batch = first_batch(trainer)
        move(trainer.model)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        found.append((loss.item(), gradients, trainer.evaluate()))
    (loss, gradients, metrics), (expected, their_gradients, their_metrics) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (gradients - their_gradients).norm() <= 1e-5 * their_gradients.norm()
    for name in ("eval_loss", "eval_preference_accuracy", "eval_logps/chosen", "eval_rewards/margins"):
        assert metrics[name] == pytest.approx(their_metrics[name], rel=1e-4, abs=1e-5)


def test_the_metrics_on_the_way_are_those_of_the_report_with_a_users_turn(mixed, tiny_model):
    trainer = build(load_config([*mixed, "engine=shared_prefix"]))
    move(trainer.model)
    table = PairTable.of(trainer.eval_dataset)
    scores = PairScores.of(table.trained(Scorer(trainer.model, 0, 3).score_pairs(table)))
    found = trainer.evaluate()
    assert found["eval_logps/chosen"] == pytest.approx(scores.chosen.logps.mean(), rel=1e-5)
    assert found["eval_preference_accuracy"] == pytest.approx((scores.margins > 0).mean(), abs=1e-12)


def test_trls_own_evaluation_depends_on_the_batch_size(overrides, tiny_model, pair_files):
    """The reason for ours; when this fails, TRL has mended it."""
    margins = []
    for batch_size in (3, 7):
        trainer = build_plain(
            load_config([*overrides, *PLAIN, f"evaluation.batch_size={batch_size}"]), tiny_model, pair_files
        )
        move(trainer.model)
        margins.append(trainer.evaluate()["eval_rewards/margins"])
    assert margins[0] != pytest.approx(margins[1], rel=1e-3)
