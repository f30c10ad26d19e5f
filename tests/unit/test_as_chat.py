"""Plain text on a model with a chat template: when it becomes chats of one turn, and what stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import LossOn
from prefopt.config.load import differences, fingerprint, load_config, to_yaml
from prefopt.config.schema import DataConfig
from prefopt.data.anatomy import dissect
from prefopt.data.loading import read_splits
from prefopt.data.shown_record import read_record
from prefopt.data.token_splits import TokenizedSplits, load_tokenized
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from tests.unit.test_tokenize import CHATML, build_tokenizer

TEXT = [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(10)]
CHAT_IDS = "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n"


def with_template() -> Any:
    return build_tokenizer(CHATML, eos="<|im_end|>")


def load(path: Path, rows: list[Any], tokenizer: Any, kind: Any = "preference", **settings: Any) -> TokenizedSplits:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = DataConfig(train=str(path), **{"held_out_fraction": 0, **settings})
    return load_tokenized(read_splits(config, kind=kind, seed=0), tokenizer, config)


def prompts(loaded: TokenizedSplits, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(ids) for ids in loaded.train["prompt_ids"]]


def test_text_of_one_question_becomes_a_chat_on_a_model_with_a_template_and_it_is_said(tmp_path: Path) -> None:
    tokenizer = with_template()
    auto = load(tmp_path / "a.jsonl", TEXT, tokenizer)
    assert prompts(auto, tokenizer)[0].removeprefix("<s>") == CHAT_IDS
    assert [line for line in auto.notes.lines() if "made chats of one turn" in line] == [
        "train: 10 rows of plain text made chats of one turn, since the model has a chat template (data.as_chat=auto; "
        "false leaves them text)"
    ]
    always = load(tmp_path / "a.jsonl", TEXT, tokenizer, as_chat=True)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert auto.train[column] == always.train[column]


def test_false_and_a_model_without_a_template_leave_text_as_it_is(tmp_path: Path) -> None:
    tokenizer = with_template()
    assert prompts(load(tmp_path / "a.jsonl", TEXT, tokenizer, as_chat=False), tokenizer)[0].endswith("Question 0?")
    plain = build_tokenizer(eos="<|im_end|>")
    loaded = load(tmp_path / "a.jsonl", TEXT, plain)
    assert prompts(loaded, plain)[0].endswith("Question 0?")
    assert not any("chat" in line for line in loaded.notes.lines())


@pytest.mark.parametrize(
    "row",
    [
        {**TEXT[0], "prompt": "\n\nHuman: Why?\n\nAssistant:"},
        {**TEXT[0], "prompt": "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n"},
        {**TEXT[0], "chosen": "so<|im_end|>"},
        {**TEXT[0], "prompt": " "},
    ],
    ids=["transcript", "rendered", "control token", "no question"],
)
def test_one_row_that_is_no_single_question_leaves_all_rows_text(tmp_path: Path, row: dict[str, str]) -> None:
    tokenizer = with_template()
    loaded = load(tmp_path / "a.jsonl", [*TEXT, row], tokenizer)
    assert not any("<|im_start|>" in text for text in prompts(loaded, tokenizer)[:10])
    assert any("1 row of plain text is a transcript, empty or holds control tokens" in x for x in loaded.notes.lines())


def test_whole_texts_and_messages_are_left_alone(tmp_path: Path) -> None:
    tokenizer = with_template()
    whole = load(tmp_path / "a.jsonl", [{"text": "Once."}], tokenizer, "sft")
    assert "<|im_start|>" not in tokenizer.decode(whole.train["input_ids"][0])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}]
    auto, never = (load(tmp_path / "b.jsonl", rows, tokenizer, "sft", as_chat=x) for x in ("auto", False))
    assert auto.train["input_ids"] == never.train["input_ids"]


def test_which_prompts_are_held_out_does_not_depend_on_it(tmp_path: Path) -> None:
    tokenizer = with_template()
    sides = [
        load(tmp_path / "a.jsonl", TEXT, tokenizer, held_out_fraction=0.4, as_chat=as_chat)
        for as_chat in ("auto", False)
    ]
    assert sides[0].held_out is not None
    assert sides[1].held_out is not None
    assert sides[0].held_out["source"] == sides[1].held_out["source"]


def test_a_held_out_chat_with_the_question_of_a_training_text_is_found(tmp_path: Path) -> None:
    turns = {"prompt": [{"role": "user", "content": "Question 3?"}]}
    sides = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "y"), ("rejected", "n"))}
    (tmp_path / "b.jsonl").write_text(json.dumps({**turns, **sides}) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in TEXT))
    config = DataConfig(train=str(tmp_path / "a.jsonl"), held_out=str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match=r"a.jsonl:4: this training row has the same prompt"):
        read_splits(config, kind="preference", seed=0)


@pytest.mark.parametrize("text", ["Be brief and kind. " * 20 + "End.", "~nobody: be brief.", "prefopt: be brief."])
def test_a_system_prompt_of_one_line_is_no_file_however_long_it_is_or_begins(tmp_path: Path, text: str) -> None:
    tokenizer = with_template()
    loaded = load(tmp_path / "a.jsonl", TEXT, tokenizer, system=text)
    assert text in prompts(loaded, tokenizer)[0]


def test_a_system_column_makes_chats_of_text(tmp_path: Path) -> None:
    rows = [{**row, "system": "Be brief." if n else ""} for n, row in enumerate(TEXT)]
    path = tmp_path / "a.jsonl"
    loaded = load(path, rows, with_template())
    tokenizer = with_template()
    shown = prompts(loaded, tokenizer)
    assert shown[0].removeprefix("<s>") == CHAT_IDS
    assert "system\nBe brief.<|im_end|>" in shown[1]
    with pytest.raises(UserError, match=r"a.jsonl:2: 'system' is a system prompt, but 'prompt' is text"):
        load(path, rows, tokenizer, as_chat=False)
    blank = [{**row, "system": ""} for row in TEXT]
    plain = build_tokenizer(eos="<|im_end|>")
    assert prompts(load(path, blank, plain), plain)[0].endswith("Question 0?"), "an empty column makes no chat"
    with pytest.raises(UserError, match="has no chat template"):
        load(path, rows, plain)


TRANSCRIPT = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " No."}
MARKED = {"prompt": "Another?", "chosen": "It ends.<|im_end|>", "rejected": "No."}


@pytest.mark.parametrize("other", [None, TRANSCRIPT, MARKED])
@pytest.mark.parametrize("place", ["train", "held_out"])
def test_a_row_is_shown_as_it_is_trained(other: dict[str, Any] | None, place: str, tmp_path: Path) -> None:
    """Other rows decide too, also held-out ones: one that can be no chat leaves all of them text."""
    tokenizer = with_template()
    others = [] if other is None else [other]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in [{**TEXT[0], "prompt": "Held out?"}, *others]))
    settings = {"held_out": str(held_out)} if place == "held_out" else {"held_out_fraction": 0}
    rows = [*TEXT, *(others if place == "train" else [])]
    loaded = load(tmp_path / "a.jsonl", rows, tokenizer, **settings)
    config = DataConfig(train=str(tmp_path / "a.jsonl"), **settings)
    record, among, _ = read_record(config, kind="preference", row=0)
    shown = dissect(record, among, tokenizer, config, loss_on=LossOn.completions)
    assert shown.sequences[0].ids == loaded.train["prompt_ids"][0]
    assert (shown.form == "") == (other is None)


def test_rows_that_a_run_leaves_out_decide_nothing(tmp_path: Path) -> None:
    same = {**TRANSCRIPT, "chosen": "Same.", "rejected": "Same."}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [TEXT[0], same, TRANSCRIPT]))
    config = DataConfig(train=str(path), held_out_fraction=0, max_rows=1)
    record, among, _ = read_record(config, kind="preference", row=0)
    assert [len(rows) for rows in among] == [1]
    assert dissect(record, among, with_template(), config, loss_on=LossOn.completions).form == ""


def test_runs_from_before_keep_their_name_and_go_on_as_they_began(tmp_path: Path) -> None:
    settings = ["+experiment=dpo_brand_voice", f"run.root={tmp_path}"]
    auto, never, always = (load_config([*settings, *x]) for x in ([], ["data.as_chat=false"], ["data.as_chat=true"]))
    assert len({fingerprint(auto), fingerprint(never), fingerprint(always)}) == 3
    assert differences(auto, never)

    # An earlier version wrote `as_chat: false` into config.yaml, and had the name of today's default.
    run = RunDirectory.of(auto)
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(auto).replace("as_chat: auto", "as_chat: false"))
    again = load_config(settings)
    run.check(again)
    assert again.data.as_chat is False
