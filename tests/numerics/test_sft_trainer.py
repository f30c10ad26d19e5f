"""Our SFT trainer against plain TRL: losses, weights, log lines, and its evaluation for any batch size."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import trl
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.algorithms import load_algorithm, sft
from prefopt.config.load import load_config
from prefopt.config.step_size import StepSize
from prefopt.data.steps import IGNORED, ROWS
from prefopt.distributed.preemption import StopRequest
from prefopt.models.examples import load_examples
from prefopt.runs.directory import RunDirectory
from prefopt.training.arguments import build_arguments
from prefopt.training.build import build_trainer
from prefopt.training.context import RunContext
from tests.conftest import STUDY, read_rows, write_rows
from tests.numerics.test_dpo_trainer import losses, move


@pytest.fixture
def settings(overrides, tmp_path) -> list[str]:
    """An SFT run on 22 demonstrations, 7 held out."""
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in read_rows(STUDY / "train.jsonl", 29)]
    train, held_out = write_rows(tmp_path / "t.jsonl", rows[:22]), write_rows(tmp_path / "h.jsonl", rows[22:])
    kept = [o for o in overrides if not o.startswith(("data.train=", "data.held_out="))]
    return [*kept, "algorithm=sft", f"data.train={train}", f"data.held_out={held_out}"]


def build(config) -> sft.SFTTrainer:
    """Our trainer, as a run builds it."""
    config = replace(config, trainer=replace(config.trainer, eval_every=10**9))
    run = RunDirectory.of(config)
    context = RunContext(config, run, StopRequest([]), Console(quiet=True), StepSize.of(config, None))
    return build_trainer(load_algorithm(config.algorithm), context, load_examples(config))


def build_plain(config, tiny_model) -> trl.SFTTrainer:
    """TRL's trainer on our ids and labels."""
    tokenized = load_examples(config).tokenized
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=build_arguments(
            load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None)
        ),
        train_dataset=tokenized.train,
        eval_dataset=tokenized.held_out,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_has_the_losses_of_plain_trl(settings, tiny_model, accumulation):
    """Also in a short last step: TRL's SFT loss is a mean over the tokens of a step, however they are spread."""
    config = load_config([*settings, f"trainer.gradient_accumulation_steps={accumulation}"])
    ours, plain = losses(build(config)), losses(build_plain(config, tiny_model))
    assert len(ours) == 6
    assert ours == pytest.approx(plain, rel=1e-5)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("index", [0, 2])
def test_a_log_line_is_the_mean_over_the_tokens_of_its_steps(settings, tiny_model, index):
    """The third step of an epoch of 22 rows has 6, in two forwards of 3."""
    trainer = build(load_config([*settings, "trainer.gradient_accumulation_steps=2"]))
    trainer.create_optimizer()
    move(trainer.model)
    trainer.model.train()
    samples, tokens = trainer.get_batch_samples(
        islice(trainer.get_train_dataloader(), 2 * index, None), 2, trainer.args.device
    )
    assert [len(batch[ROWS]) for batch in samples] == ([4, 4], [3, 3])[index // 2]
    rows = [row for batch in samples for row in batch[ROWS]]
    for batch in samples:
        trainer.training_step(trainer.model, batch, tokens)
    means = trainer.window.close()

    plain = build_plain(load_config([*settings, "run.name=plain"]), tiny_model)
    move(plain.model)
    plain.model.train()
    batch = plain.data_collator([plain.train_dataset[row] for row in rows])
    expected = plain.compute_loss(plain.model, dict(batch), num_items_in_batch=(batch["labels"] != IGNORED).sum())
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for name in ("entropy", "mean_token_accuracy"):
        assert means[name] == pytest.approx(plain._metrics["train"][name][0], rel=1e-5, abs=1e-9)
    assert means["num_tokens"] == batch["attention_mask"].sum()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_is_the_mean_over_tokens_for_any_batch_size(settings, tiny_model, batch_size):
    trainer = build(load_config([*settings, f"evaluation.batch_size={batch_size}"]))
    move(trainer.model)
    found = trainer.evaluate()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    move(model)
    logps, hits = [], []
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            scores = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        scored = labels != IGNORED
        logps += scores[scored].gather(1, labels[scored][:, None])[:, 0].tolist()
        hits += (scores[scored].argmax(-1) == labels[scored]).tolist()
    assert found["eval_loss"] == pytest.approx(-np.mean(logps), rel=1e-5)
    assert found["eval_mean_token_accuracy"] == pytest.approx(np.mean(hits), abs=1e-12)
