"""What a contestant is told stands before each prompt, as messages or as text, and is rendered as in training."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prefopt.config.contestants import read_contestants
from prefopt.config.schema import DataConfig
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.evaluation.asked import to_text
from prefopt.evaluation.prompting import Prefix, as_messages, encode_prompts, question_of
from prefopt.process.errors import UserError
from tests.conftest import write_rows

BASE = "src/prefopt/assets/base_model"


def chat(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def pair(prompt: object) -> PreferencePair:
    answers = ("yes", "no") if isinstance(prompt, str) else ([chat("yes", "assistant")], [chat("no", "assistant")])
    return PreferencePair(prompt, *answers, None, {}, "a.jsonl:1")


def prefix(tmp_path: Path, **table: object) -> Prefix:
    (found,) = read_contestants([{"name": "told", **table}])
    return Prefix.of(found)


def test_messages_get_a_system_message_and_examples_as_turns(tmp_path):
    rows = write_rows(
        tmp_path / "shots.jsonl", [{"prompt": "1+1", "completion": "2"}, {"prompt": "2+2", "chosen": "4"}]
    )
    told = prefix(tmp_path, system="Be brief.", examples=str(rows), num_examples=2)
    assert told.before([chat("3+3")]) == [
        chat("Be brief.", "system"), chat("1+1"), chat("2", "assistant"), chat("2+2"), chat("4", "assistant"),
        chat("3+3"),
    ]  # fmt: skip


def test_a_system_message_of_the_prompt_follows_in_the_same_message():
    told = Prefix("Be brief.")
    own = [chat("You sell tents.", "system"), chat("Hello")]
    assert told.before(own) == [chat("Be brief.\n\nYou sell tents.", "system"), chat("Hello")]
    assert Prefix().before(own) == own


def test_text_gets_both_as_paragraphs_before_it():
    told = Prefix("Be brief.", (("1+1", "2"),))
    assert told.before("3+3") == "Be brief.\n\n1+1\n2\n\n3+3"
    assert Prefix().before("3+3") == "3+3"


def test_examples_may_be_messages_and_are_the_first_rows(tmp_path):
    rows = write_rows(
        tmp_path / "shots.jsonl",
        [{"prompt": [chat("q")], "chosen": [chat("a", "assistant")], "rejected": [chat("b", "assistant")]}, {"x": 1}],
    )
    assert prefix(tmp_path, examples=str(rows), num_examples=1).examples == (("q", "a"),)
    with pytest.raises(UserError, match=r"shots.jsonl:2: no prompt with an answer"):
        prefix(tmp_path, examples=str(rows), num_examples=2)
    write_rows(tmp_path / "shots.jsonl", [{"prompt": "q", "completion": "a"}] * 2)
    with pytest.raises(UserError, match=r"has 2 rows. Set num_examples=2"):
        prefix(tmp_path, examples=str(rows), num_examples=3)


def test_a_system_prompt_is_a_text_or_a_file(tmp_path):
    (tmp_path / "guide.md").write_text("Be kind.\n")
    assert prefix(tmp_path, system=str(tmp_path / "guide.md")).system == "Be kind."
    for text in ("Be brief and kind. " * 20, "~nobody: be brief.", "prefopt: be brief."):
        assert prefix(tmp_path, system=text).system == text.strip()
    with pytest.raises(UserError, match=r"told: system: .*no such file"):
        prefix(tmp_path, system=str(tmp_path / "gide.md"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="holds no text"):
        prefix(tmp_path, system=str(tmp_path / "empty.txt"))


def test_without_a_prefix_the_ids_are_those_of_training():
    from prefopt.config.choices import OnBadRow, OnLongCompletion
    from prefopt.data.tokenize import tokenize_pairs

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    records = [pair([chat("a tent")]), pair([chat("Be kind.", "system"), chat("two poles, please")])]
    trained = tokenize_pairs(
        records, tokenizer, max_length=1024, on_long_prompt=OnBadRow.refuse,
        on_long_completion=OnLongCompletion.refuse, on_extra_eos=OnBadRow.refuse,
    )  # fmt: skip
    assert encode_prompts(records, Prefix(), tokenizer, DataConfig(train="")) == trained.dataset["prompt_ids"]
    # Plain questions become chats on a model with a chat template, as in training.
    as_chat = encode_prompts([pair("a tent")], Prefix(), tokenizer, DataConfig(train=""))
    assert as_chat == [trained.dataset["prompt_ids"][0]]
    as_text = encode_prompts([pair("a tent")], Prefix(), tokenizer, DataConfig(train="", as_chat=False))
    assert as_text == [tokenizer("a tent")["input_ids"]]


def test_a_prefix_is_rendered_by_the_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    (ids,) = encode_prompts([pair([chat("a tent")])], Prefix("Be kind."), tokenizer, DataConfig(train=""))
    wanted = tokenizer.apply_chat_template(
        [chat("Be kind.", "system"), chat("a tent")], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(ids) == wanted


def test_what_another_model_is_asked_of_demonstrations():
    talk = SFTExample(messages=[chat("q"), chat("a", "assistant")], source="a:1")
    assert question_of(talk) == [chat("q")]
    assert as_messages(talk, Prefix("Be kind.")) == [chat("Be kind.", "system"), chat("q")]
    assert as_messages(pair(" a tent "), Prefix()) == [chat("a tent")]
    with pytest.raises(UserError, match="is a single text, without a prompt"):
        as_messages(SFTExample(text="once upon a time", source="a:2"), Prefix())


def test_answers_and_prompts_as_text():
    assert to_text(" a ") == "a"
    assert to_text([chat("a"), chat("b", "assistant")]) == "a\nb"
    assert to_text(None) == to_text(3) == ""


def test_a_contestant_that_cannot_be_is_refused():
    def refused(*given: object) -> str:
        with pytest.raises(UserError) as error:
            read_contestants(list(given))
        return str(error.value)

    assert "two contestants have the name 'base'" in refused("base", "base")
    assert "no key 'sytem'" in refused({"name": "a", "sytem": "x"})
    assert "Did you mean system?" in refused({"name": "a", "sytem": "x"})
    assert "name is required" in refused({"system": "x"})
    assert "base is the model as it is" in refused({"name": "base", "system": "x"})
    assert "an endpoint needs model" in refused({"name": "a", "endpoint": "http://127.0.0.1:1/v1"})
    assert "must be a URL" in refused({"name": "a", "endpoint": "127.0.0.1", "model": "m"})
    assert "key_env is the key of an endpoint" in refused({"name": "a", "key_env": "KEY"})
    assert "num_examples must be >= 1" in refused({"name": "a", "num_examples": 0})
    assert "num_examples must be a whole number, found True" in refused({"name": "a", "num_examples": True})
    assert "found 5" in refused(5)
    assert [each.name for each in read_contestants(["base", "runs/mine"])] == ["base", "mine"]
    assert json.dumps([each.model for each in read_contestants(["tuned", "runs/mine"])]) == '["tuned", "runs/mine"]'
