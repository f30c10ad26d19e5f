"""Small files that once were trained wrong: which of their tokens have loss, and what is said about them."""

from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer

from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.data.ragged import CONTEXT_COLUMNS
from prefopt.data.split import prompt_key
from prefopt.data.token_splits import load_tokenized
from prefopt.process.paths import shipped
from tests.conftest import SHARED_DATA

FOLDER = SHARED_DATA.parent / "cases"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
END = "<|im_end|>\n"


def load(name: str, kind: Any, template: str | None = None, **settings: Any) -> tuple[Any, Any, list[str]]:
    """The tokenizer, the first row of a file as tokens, and the notes."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    tokenizer = AutoTokenizer.from_pretrained(shipped("assets/base_model"))
    if template is not None:
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    config = DataConfig(train=str(path), held_out_fraction=0, **settings)
    loaded = load_tokenized(read_splits(config, kind=kind, seed=0), tokenizer, config)
    return tokenizer, loaded.train[0], loaded.notes.lines()


def trained(tokenizer: Any, row: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize(("template", "end"), [(None, END), ("phi3_5", "<|end|>\n"), ("qwen3_vl", END)])
def test_loss_is_on_both_answers_of_a_conversation(template: str | None, end: str) -> None:
    tokenizer, row, _ = load("01_multiturn.jsonl", "sft", template)
    text = trained(tokenizer, row)
    assert text.removesuffix(tokenizer.eos_token) == f"An apple.{end}A carrot.{end}"


def test_a_turn_of_weight_0_is_not_trained_and_counted() -> None:
    tokenizer, row, lines = load("03_weight0.jsonl", "sft")
    assert trained(tokenizer, row) == f"Four.{END}"
    assert "WRONGANSWER" in tokenizer.decode(row["input_ids"])
    assert any(line.startswith("train: 12 assistant turns are marked as not trained") for line in lines)


def test_greeted_questions_count_as_many_prompts() -> None:
    _, _, lines = load("09_greeting.jsonl", "sft")
    assert any(line.startswith("train: 20 greetings are not trained") for line in lines)
    config = DataConfig(train=str(FOLDER / "09_greeting.jsonl"), held_out_fraction=0.2)
    splits = read_splits(config, kind="sft", seed=0)
    assert (len(splits.train), len(splits.held_out or [])) == (16, 4)
    assert len({prompt_key(record) for record in splits.train}) == 16


@pytest.mark.parametrize(
    ("name", "start"), [("16_parts.jsonl", "user\nhello 0"), ("37h_bedrock.jsonl", "system\nbe nice")]
)
def test_content_in_parts_is_read_as_text(name: str, start: str) -> None:
    tokenizer, row, _ = load(name, "sft")
    assert tokenizer.decode(row["input_ids"]).startswith(f"<|im_start|>{start}{END}")
    assert trained(tokenizer, row) == f"hi{END}"


def test_a_users_turn_inside_a_pairs_completion_is_context() -> None:
    tokenizer, row, lines = load("18_dpo_user_in_completion.jsonl", "preference")
    for side, words in (("chosen", "USERWORDS"), ("rejected", "OTHERWORDS")):
        start, end = row[f"{side}_context"]
        assert words in tokenizer.decode(row[f"{side}_ids"][start:end])
        assert words not in tokenizer.decode(row[f"{side}_ids"][:start] + row[f"{side}_ids"][end:])
    assert set(CONTEXT_COLUMNS) <= row.keys()
    assert any(line.startswith("train: 24 turns inside completions are context") for line in lines)


def test_chats_that_were_rendered_before_are_text_with_all_their_turns() -> None:
    tokenizer, row, lines = load("20_prerendered.jsonl", "sft")
    turns = ["user\nhello 0", "assistant\nhi", "user\nmore", "assistant\nok"]
    assert trained(tokenizer, row) == "".join(f"<|im_start|>{turn}{END}" for turn in turns) + tokenizer.eos_token
    assert any(line.startswith("train: 12 rows of text hold control tokens") for line in lines)


def test_plain_text_on_a_model_of_chats_is_said_and_made_chats_on_demand() -> None:
    _, _, lines = load("40_plain_on_chat_model.jsonl", "sft", as_chat=False)
    assert any(line.startswith("train: 12 rows are plain text") and "data.as_chat=true" in line for line in lines)
    _, made, lines = load("40_plain_on_chat_model.jsonl", "sft")
    assert any(line.startswith("train: 12 rows of plain text made chats of one turn") for line in lines)
    tokenizer, row, lines = load("40_plain_on_chat_model.jsonl", "sft", as_chat=True)
    assert row["input_ids"] == made["input_ids"]
    assert tokenizer.decode(row["input_ids"]).startswith(
        f"<|im_start|>user\nWhich way to shop 0?{END}<|im_start|>assistant"
    )
    assert trained(tokenizer, row) == f"To the left.{END}"
    assert not any("plain text, though" in line for line in lines)
