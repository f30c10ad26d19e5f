"""Small files that were once read wrong, or refused without a way out: what each of them means."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from prefopt.config.choices import DataFormat, OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.data.reading import read_records
from prefopt.data.split import prompt_key
from prefopt.process.errors import UserError
from tests.conftest import SHARED_DATA

FOLDER = SHARED_DATA.parent / "cases"


def path_of(name: str) -> str:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return str(path)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat_pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return pair([turn("user", prompt)], [turn("assistant", chosen)], [turn("assistant", rejected)])


class Case(NamedTuple):
    """A file, what it is read as, and the fields that its first record must have."""

    name: str
    kind: str
    first: dict[str, Any]


HH = "\n\nHuman: Which colour number 0 is nice?\n\nAssistant:"
WEATHER = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"town": "town 0"}}}
OLD_CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}

CASES = [
    Case(
        "01_multiturn.jsonl",
        "sft",
        {
            "messages": [
                turn("user", "Name a fruit 0"),
                turn("assistant", "An apple."),
                turn("user", "And a vegetable?"),
                turn("assistant", "A carrot."),
            ]
        },
    ),
    Case(
        "03_weight0.jsonl",
        "sft",
        {
            "messages": [
                turn("user", "What is 2+2? (0)"),
                turn("assistant", "Five, WRONGANSWER.", train=False),
                turn("user", "Check again."),
                turn("assistant", "Four."),
            ]
        },
    ),
    Case(
        "04_args_string.jsonl",
        "sft",
        {
            "messages": [
                turn("user", "Weather in town 0?"),
                turn("assistant", "", tool_calls=[WEATHER]),
                turn("tool", "rain", tool_call_id="c1"),
                turn("assistant", "It rains."),
            ]
        },
    ),
    Case("06_hh_same_prompt.jsonl", "preference", pair(HH, " I think the answer is yes.", " I think it is no.")),
    Case(
        "09_greeting.jsonl",
        "sft",
        {
            "messages": [
                turn("assistant", "Welcome, how may I help?"),
                turn("user", "My order 0 is late"),
                turn("assistant", "I will look for order 0."),
            ]
        },
    ),
    Case("16_parts.jsonl", "sft", {"messages": [turn("user", "hello 0"), turn("assistant", "hi")]}),
    Case("17_repr.csv", "preference", chat_pair("hello 0", "yes 0", "no 0")),
    Case("17b_json.csv", "preference", chat_pair("hello 0", "yes 0", "no 0")),
    Case(
        "18_dpo_user_in_completion.jsonl",
        "preference",
        pair(
            [turn("user", "hello 0")],
            [turn("assistant", "hi"), turn("user", "USERWORDS are here"), turn("assistant", "fine")],
            [turn("assistant", "what"), turn("user", "OTHERWORDS are there"), turn("assistant", "bad")],
        ),
    ),
    Case("19_really_gz.jsonl", "preference", pair("a 0", " yes", " no")),
    Case(
        "20_prerendered.jsonl",
        "sft",
        {
            "text": "<|im_start|>user\nhello 0<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
            "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
        },
    ),
    Case("33b_semicolon.csv", "preference", pair("a 0", "yes", "no 0")),
    Case("33e_array.jsonl", "preference", pair("a 0", "y", "n")),
    Case(
        "35_prompt_dropped.jsonl",
        "preference",
        pair(
            [turn("system", "Be nice."), turn("user", "QUESTION number 0?")],
            [turn("assistant", "yes 0")],
            [turn("assistant", "no 0")],
        ),
    ),
    Case("37_swift.jsonl", "preference", chat_pair("hello 0", "good", "bad")),
    Case("37c_lf_openai.jsonl", "preference", chat_pair("hello 0", "good", "bad")),
    Case("37e_conv_role.jsonl", "sft", {"messages": [turn("user", "hello 0"), turn("assistant", "good")]}),
    Case(
        "37f_functioncall.jsonl",
        "sft",
        {
            "messages": [
                turn("user", "hello 0"),
                {"role": "assistant", "tool_calls": [OLD_CALL]},
                turn("tool", "1", name="f"),
                turn("assistant", "one"),
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
    ),
    Case(
        "37h_bedrock.jsonl",
        "sft",
        {"messages": [turn("system", "be nice"), turn("user", "hello 0"), turn("assistant", "hi")]},
    ),
    Case("40_plain_on_chat_model.jsonl", "sft", {"prompt": "Which way to shop 0?", "completion": "To the left."}),
]


def read(name: str, kind: str) -> list[Any]:
    return read_records(path_of(name), format=DataFormat.auto, kind=kind).records  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_means_what_its_author_meant(case: Case) -> None:
    records = read(case.name, case.kind)
    assert len(records) == {"06": 50, "09": 20}.get(case.name[:2], 12)
    assert {name: getattr(records[0], name) for name in case.first} == case.first


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("36_system_column.jsonl", "preference", ":1: 'system' is a system prompt, but .* Set data.as_chat=true"),
        ("37b_kto.jsonl", "sft", ":2: 'label' is false: in KTO's format"),
    ],
)
def test_a_file_that_cannot_be_trained_is_refused_by_name(name: str, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=name + message):
        read(name, kind)


def test_a_system_column_beside_text_is_used_by_the_remedy_that_its_refusal_names() -> None:
    config = DataConfig(train=path_of("36_system_column.jsonl"), held_out_fraction=0, as_chat=True)
    record = read_splits(config, kind="preference", seed=0).train[0]
    assert record.prompt == [turn("system", "Answer in French."), turn("user", "hello 0")]


def test_labelled_answers_without_a_counterpart_are_told_and_the_wanted_ones_train() -> None:
    config = DataConfig(train=path_of("37b_kto.jsonl"), held_out_fraction=0)
    with pytest.raises(UserError, match=r"12 rows skipped: an answer with a label, .*algorithm=sft trains those"):
        read_splits(config, kind="preference", seed=0)
    splits = read_splits(replace(config, on_bad=OnBadRow.skip), kind="sft", seed=0)
    assert [record.prompt for record in splits.train] == [f"hello {number}" for number in range(0, 12, 2)]


def test_every_file_is_in_the_table_or_in_a_test_of_its_own() -> None:
    elsewhere = {
        "05_nulls.parquet",
        "05_same_as_jsonl.jsonl",
        "21_long_positions.jsonl",  # too long for a model: tests/integration/test_fit.py has such rows
        "36_system_column.jsonl",
        "37b_kto.jsonl",
    }
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is absent")
    found = {path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".md"}
    assert found == elsewhere | {case.name for case in CASES}


def test_parquet_and_json_lines_of_the_same_rows_give_the_same_records() -> None:
    parquet, lines = read("05_nulls.parquet", "sft"), read("05_same_as_jsonl.jsonl", "sft")
    assert [(one.messages, one.tools) for one in parquet] == [(one.messages, one.tools) for one in lines]
    assert all("None" not in str(record.tools) for record in parquet)


def test_transcripts_of_ten_prompts_are_ten_prompts_on_one_side_each() -> None:
    config = DataConfig(train=path_of("06_hh_same_prompt.jsonl"), held_out_fraction=0.2)
    splits = read_splits(config, kind="preference", seed=0)
    train, held_out = ({prompt_key(record) for record in side} for side in (splits.train, splits.held_out or []))
    assert (len(train), len(held_out), train & held_out) == (8, 2, set())


def test_a_system_column_beside_text_makes_chats_unless_that_is_turned_off() -> None:
    path = path_of("36_system_column.jsonl")
    splits = read_splits(DataConfig(train=path, held_out_fraction=0), kind="preference", seed=0)
    assert [message["role"] for message in splits.train[0].prompt or ()] == ["system", "user"]  # type: ignore[index]
    with pytest.raises(UserError, match=":1: 'system' is a system prompt, but 'prompt' is text"):
        read_splits(DataConfig(train=path, held_out_fraction=0, as_chat=False), kind="preference", seed=0)
