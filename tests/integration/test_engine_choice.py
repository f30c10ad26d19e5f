"""Which forward a run takes, and that it says so."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from prefopt.config.load import load_config
from prefopt.models.shared_prefix import choice
from prefopt.models.shared_prefix.collate import REFERENCE
from prefopt.train import main as train
from tests.numerics.test_dpo_trainer import build

pytestmark = pytest.mark.slow


@pytest.fixture
def bloom(tiny_model, tmp_path) -> Path:
    """A model whose attention adds a bias by place (ALiBi), outside of transformers' attention interface."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    folder = tmp_path / "bloom"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def work_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "runs" / "test" / "work.json").read_text())


def test_a_model_that_cannot_share_prompts_is_refused_by_name_and_leaves_nothing(overrides, bloom, tmp_path, fails):
    message = fails(
        train, [*overrides, f"model.path={bloom}", "model.attn_implementation=eager", "engine=shared_prefix"]
    )
    assert "engine=shared_prefix: BloomForCausalLM" in message
    assert "engine=trl" in message
    assert not (tmp_path / "runs" / "test").exists()


def test_auto_takes_trls_forward_for_it_and_says_why(overrides, bloom, tmp_path, capsys):
    train([*overrides, f"model.path={bloom}", "model.attn_implementation=eager"])
    assert "engine: trl, because BloomForCausalLM" in capsys.readouterr().out
    assert work_of(tmp_path)["engine"] == "trl"


def test_a_model_whose_log_probs_would_differ_is_found_before_training(
    overrides, tmp_path, monkeypatch, fails, capsys
):
    monkeypatch.setattr(choice, "LIMIT", dict.fromkeys(choice.LIMIT, -1.0))
    message = fails(train, [*overrides, "engine=shared_prefix"])
    assert "its log-probs would be off by" in message
    train(overrides)
    assert "engine: trl, because its log-probs would be off" in capsys.readouterr().out
    assert work_of(tmp_path)["engine"] == "trl"


def test_the_choice_is_said_once(overrides, tmp_path, capsys):
    train(overrides)
    out = capsys.readouterr().out
    assert out.count("engine: shared_prefix, split attention") == 1
    assert work_of(tmp_path)["engine"] == "shared_prefix (split)"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["peft=lora", "peft.dropout=0.1", "trainer.extra.disable_dropout=false"], "dropout is on"),
        (["trainer.extra.neftune_noise_alpha=5"], "neftune"),
    ],
)
def test_settings_that_sharing_would_change_fall_back_to_trl(overrides, capsys, settings, reason):
    train([*overrides, *settings, "trainer.max_steps=1"])
    out = capsys.readouterr().out
    assert "engine: trl, because" in out
    assert reason in out


def test_a_form_that_fails_gives_way_to_the_one_that_always_works(overrides, tmp_path, monkeypatch):
    from prefopt.models.shared_prefix import engine

    def broken(*_args, **_kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(engine, "choose_form", lambda *_: ("varlen", "as on CUDA"))
    monkeypatch.setattr("prefopt.models.shared_prefix.attention._torch_varlen", broken)
    train([*overrides, "trainer.max_steps=1"])
    assert work_of(tmp_path)["engine"] == "shared_prefix (split)"


def test_log_probs_of_the_store_stay_in_float32_under_deepspeed_in_bf16(overrides, monkeypatch):
    trainer = build(load_config(overrides))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 1)])
    half = {k: v.bfloat16() if getattr(v, "is_floating_point", bool)() else v for k, v in batch.items()}
    monkeypatch.setattr("trl.DPOTrainer._prepare_inputs", lambda self, inputs: dict(half))
    assert trainer._prepare_inputs(batch)[REFERENCE].dtype is torch.float32
