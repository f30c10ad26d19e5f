"""Rows as other systems and tables write them: the record that they mean, or a refusal that names what they are."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefopt.config.choices import DataFormat
from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.data.reading import ReadResult, read_records
from prefopt.data.records import PreferencePair
from prefopt.process.errors import UserError

USER = {"role": "user", "content": "Say hi."}
HI = {"role": "assistant", "content": "Hi!"}
NO = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}


def read(tmp_path: Path, *rows: Any, kind: str = "preference") -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(str(path), format=DataFormat.auto, kind=kind)  # type: ignore[arg-type]


def record(tmp_path: Path, row: Any, kind: str = "preference") -> Any:
    return read(tmp_path, row, kind=kind).records[0]


def refusal(tmp_path: Path, *rows: Any, kind: str = "preference") -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, *rows, kind=kind)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def labelled(*labels: Any, prompt: str = "Say hi.") -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": "Hi!", "label": label} for label in labels]


def calling(call: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, HI]}


@pytest.mark.parametrize("arguments", ['{"zone": "UTC"}', {"zone": "UTC"}])
def test_arguments_as_json_text_are_the_object_that_they_spell(tmp_path: Path, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": arguments}}
    assert record(tmp_path, calling(call), "sft").messages[1]["tool_calls"] == [CALL]
    bare = record(tmp_path, calling({"name": "clock", "arguments": arguments}), "sft")
    assert bare.messages[1]["tool_calls"] == [{"name": "clock", "arguments": {"zone": "UTC"}}]


@pytest.mark.parametrize("arguments", ["", " ", None, {}])
def test_blank_arguments_are_an_object_without_keys(tmp_path: Path, arguments: Any) -> None:
    assert record(tmp_path, calling({"name": "f", "arguments": arguments}), "sft").messages[1]["tool_calls"] == [
        {"name": "f", "arguments": {}}
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("zone=UTC", "is text, but not valid JSON"),
        ("[1]", 'must be an object {name: value} or its JSON text, found text ("[1]")'),
        ([1], "must be an object {name: value} or its JSON text, found a list ([1]). Write which argument has which"),
        ([["zone", "UTC"]], "must be an object"),
        (7, "must be an object"),
        (False, "must be an object"),
        ("7", "must be an object"),
        ('{"a":1,"a":2}', "twice"),
    ],
)
def test_arguments_that_are_no_object_are_refused(tmp_path: Path, arguments: Any, part: str) -> None:
    message = refusal(tmp_path, calling({"function": {"name": "f", "arguments": arguments}}), kind="sft")
    assert message.startswith("rows.jsonl:1: 'messages[1].tool_calls[0].function.arguments' ")
    assert part in message


def test_openais_older_function_calls_are_tool_calls(tmp_path: Path) -> None:
    function = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": function},
            {"role": "function", "name": "clock", "content": "5"},
            HI,
        ],
        "functions": [{"name": "clock", "parameters": {}}],
    }
    result = read(tmp_path, row, kind="sft")
    example: Any = result.records[0]
    assert example.messages[1] == {"role": "assistant", "tool_calls": [CALL]}
    assert example.messages[2] == {"role": "tool", "name": "clock", "content": "5"}
    assert example.tools == [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    assert result.notes.ignored_columns == {}


def test_content_in_parts_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Say"}, {"text": " hi."}]
    assert record(tmp_path, {"messages": [{"role": "user", "content": parts}, HI]}, "sft").messages == [USER, HI]
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    message = refusal(tmp_path, {"messages": [{"role": "user", "content": image}, HI]}, kind="sft")
    assert "'messages[0].content[0]' must be a part {type: text, text}" in message


@pytest.mark.parametrize("system", ["Be brief.", [{"text": "Be brief."}]])
def test_a_system_column_is_the_first_message(tmp_path: Path, system: Any) -> None:
    pair = {"system": system, "prompt": [USER], "chosen": [HI], "rejected": [NO]}
    result = read(tmp_path, pair)
    assert result.records[0].prompt == [SYSTEM, USER]  # type: ignore[union-attr]
    assert result.notes.ignored_columns == {}
    assert record(tmp_path, {**pair, "prompt": [SYSTEM, USER]}).prompt == [SYSTEM, USER]
    assert record(tmp_path, {"system": system, "messages": [USER, HI]}, "sft").messages == [SYSTEM, USER, HI]
    example = record(tmp_path, {"system": system, "prompt": [USER], "completion": [HI]}, "sft")
    assert example.prompt == [SYSTEM, USER]


def test_a_system_column_that_has_no_place_is_refused(tmp_path: Path) -> None:
    text = {"system": "Be brief.", "prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}
    assert "'system' is a system prompt, but 'prompt' is text" in refusal(tmp_path, text)
    assert record(tmp_path, {**text, "system": ""}).prompt == "Say hi."
    other = {"system": "Be rude.", "prompt": [SYSTEM, USER], "chosen": [HI], "rejected": [NO]}
    assert "'system' differs from the system message of 'prompt'" in refusal(tmp_path, other)


def test_a_text_prompt_beside_answers_that_lack_it_is_the_users_message(tmp_path: Path) -> None:
    result = read(tmp_path, {"prompt": "Say hi.", "chosen": [SYSTEM, HI], "rejected": [SYSTEM, NO]})
    pair: Any = result.records[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([SYSTEM, USER], [HI], [NO])
    assert result.notes.ignored_columns == {}
    assert record(tmp_path, {"prompt": "Say hi.", "chosen": [HI], "rejected": [NO]}).prompt == [USER]


def test_a_text_prompt_beside_another_question_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"prompt": "Say bye.", "chosen": [USER, HI], "rejected": [USER, NO]})
    assert message.startswith("rows.jsonl:1: 'prompt' (text (\"Say bye.\")) does not occur in what the user says")
    assert "does not occur in what the user says in 'messages'" in refusal(
        tmp_path, {"prompt": "Bye.", "messages": [USER, HI]}, kind="sft"
    )


def test_a_text_prompt_that_the_messages_hold_is_left_aside(tmp_path: Path) -> None:
    result = read(tmp_path, {"prompt": "Say  hi.", "messages": [SYSTEM, USER, HI]}, kind="sft")
    assert result.records[0].messages == [SYSTEM, USER, HI]  # type: ignore[union-attr]
    assert result.notes.ignored_columns == {"prompt": 1}


HELPER = {"role": "system", "content": "You are a helpful bot. Say hi."}


@pytest.mark.parametrize("prompt", ["help", "Say hi.", "You"])
def test_a_text_prompt_is_no_part_of_what_the_system_says(tmp_path: Path, prompt: str) -> None:
    pair = record(tmp_path, {"prompt": prompt, "chosen": [HELPER, HI], "rejected": [HELPER, NO]})
    assert pair.prompt == [HELPER, {"role": "user", "content": prompt}]


@pytest.mark.parametrize(
    ("prompt", "asked", "is_held"),
    [
        ("help", "A helpful bot?", False),
        ("help", "Please help me.", True),
        ("Say hi", "First.\nSay  hi.", True),
        ("1+1=?", "What is 1+1=?", True),
        ("+1", "What is 1+1=?", False),
        ("天气如何", "请问天气如何", True),
    ],
)
def test_a_text_prompt_is_held_by_a_users_message_in_whole_words(
    tmp_path: Path, prompt: str, asked: str, is_held: bool
) -> None:
    question = {"role": "user", "content": asked}
    rows = [
        ({"prompt": prompt, "chosen": [question, HI], "rejected": [question, NO]}, "preference"),
        ({"prompt": prompt, "messages": [question, HI]}, "sft"),
    ]
    for row, kind in rows:
        if is_held:
            assert read(tmp_path, row, kind=kind).notes.ignored_columns == {"prompt": 1}
        else:
            assert "does not occur in what the user says" in refusal(tmp_path, row, kind=kind)


def test_a_prompt_of_messages_beside_a_conversation_is_its_beginning_or_refused(tmp_path: Path) -> None:
    row = {"prompt": [SYSTEM, USER], "messages": [SYSTEM, USER, HI]}
    result = read(tmp_path, row, kind="sft")
    assert result.records[0].messages == [SYSTEM, USER, HI]  # type: ignore[union-attr]
    assert result.notes.ignored_columns == {"prompt": 1}
    for prompt in ([USER], [SYSTEM, {**USER, "content": "Say bye."}], [SYSTEM, USER, HI, USER]):
        message = refusal(tmp_path, {**row, "prompt": prompt}, kind="sft")
        assert message.startswith("rows.jsonl:1: 'prompt' is not the beginning of 'messages'")
    assert "'prompt' must be text or a list of messages" in refusal(tmp_path, {**row, "prompt": {"a": 1}}, kind="sft")


@pytest.mark.parametrize("label", [False, "False", 0, 0.0, "0", -1, "-1", "no", " NO", "undesirable", "Bad"])
def test_answers_that_kto_shall_avoid_are_not_demonstrations(tmp_path: Path, label: Any) -> None:
    wanted = {"prompt": "Say hi.", "completion": "Hi!", "label": True}
    message = refusal(tmp_path, wanted, {**wanted, "completion": "No.", "label": label}, kind="sft")
    assert message.startswith(f"rows.jsonl:2: 'label' is {str(label).strip().lower()}: in KTO's format this answer is")
    assert len(read(tmp_path, wanted, {**wanted, "label": "yes"}, {**wanted, "label": 1}, kind="sft").records) == 3
    assert "'kto_tag' is false" in refusal(tmp_path, {"messages": [USER, NO], "kto_tag": False}, kind="sft")


@pytest.mark.parametrize("labels", [(0, 1, 76), (0, "0.5", 1), ("no", "food", "travel"), (False, [1], [2])])
def test_a_column_of_another_meaning_is_no_label_of_kto(tmp_path: Path, labels: Any) -> None:
    assert read(tmp_path, *labelled(*labels), kind="sft").notes.ignored_columns == {"label": 3}
    texts = [{"text": "Say hi.", "label": label} for label in (False, 0)]
    assert read(tmp_path, *texts, kind="sft").notes.ignored_columns == {"label": 2}
    pairs = [{"messages": [USER, HI], "rejected": [USER, NO], "label": 0}]
    assert len(read(tmp_path, *pairs, kind="sft").records) == 1
    assert "KTO" not in refusal(tmp_path, {"prompt": "a", "completion": "b", "label": 17})


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("alpha", "beta", " Alpha "), 'text ("alpha") in 2 rows (unknown) and text ("beta") in 1 row (unknown)'),
        (("good", "awful", "awful"), 'text ("good") in 1 row and text ("awful") in 2 rows (unknown)'),
        (("bad", "superb", "superb"), 'text ("bad") in 1 row and text ("superb") in 2 rows (unknown)'),
        ((True, "?", True), 'text ("true") in 2 rows and text ("?") in 1 row (unknown)'),
        (("alpha", "beta", "gamma"), None),
        (("alpha", None, "alpha"), None),
        ((2, 3, 3), None),
        (("0.5", "1", "1"), None),
        (("good", True, True), None),
    ],
)
def test_a_label_of_two_unknown_words_is_told_since_both_are_trained(
    tmp_path: Path, labels: Any, told: str | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled(*labels)))
    splits = read_splits(DataConfig(train=str(path), held_out=None, held_out_fraction=0), kind="sft", seed=0)
    assert len(splits.train) == len(labels)
    lines = [line for line in splits.notes.lines() if "has two values" in line]
    assert lines == splits.notes.warnings()
    assert len(lines) == (told is not None)
    if told is not None:
        assert lines[0].startswith(f"column 'label' has two values, {told}: rows of an unknown one are trained. If it")
        assert "write true there for these, and false for the others" in lines[0]


def test_a_label_is_told_once_for_all_files_and_not_for_pairs(tmp_path: Path) -> None:
    for name, label in (("train", "alpha"), ("held_out", "beta")):
        rows = labelled(label, label, prompt=name)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "held_out")}
    (line,) = read_splits(DataConfig(**files), kind="sft", seed=0).notes.warnings()
    assert 'text ("alpha") in 2 rows (unknown) and text ("beta") in 2 rows (unknown)' in line
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b", "label": word} for word in ("alpha", "beta")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    config = DataConfig(train=files["train"], held_out_fraction=0)
    assert read_splits(config, kind="preference", seed=0).notes.warnings() == []


@pytest.mark.parametrize(
    ("labels", "first", "strange"),
    [
        ((True, False, "?"), "2: 'label' is false", 'rows.jsonl:3: text ("?")'),
        (("no", "yes", "maybe"), "1: 'label' is no", 'rows.jsonl:3: text ("maybe")'),
        ((False, True, 5), "1: 'label' is false", "rows.jsonl:3: a number (5)"),
        ((0, [1], 1), "1: 'label' is 0", "rows.jsonl:2: a list ([1])"),
    ],
)
def test_a_stray_value_among_labels_of_kto_does_not_hide_the_answers_to_avoid(
    tmp_path: Path, labels: Any, first: str, strange: str
) -> None:
    message = refusal(tmp_path, *labelled(*labels), kind="sft")
    assert message.startswith(f"rows.jsonl:{first}: in KTO's format this answer is one to avoid")
    assert f"1 row has a value that says neither yes nor no, first {tmp_path}/{strange}" in message


@pytest.mark.parametrize("missing", [None, "", " ", "NaN", "None", float("nan")])
def test_a_missing_label_says_nothing_of_the_others(tmp_path: Path, missing: Any) -> None:
    rows = labelled(True, missing, missing, missing, False)
    assert refusal(tmp_path, *rows, kind="sft").startswith("rows.jsonl:5: 'label' is false")
    assert len(read(tmp_path, *rows[:4], kind="sft").records) == 4


def test_a_rejected_column_without_a_value_makes_no_pair_of_an_answer_to_avoid(tmp_path: Path) -> None:
    row = {"prompt": "Say hi.", "completion": "No.", "label": False, "rejected": None}
    assert refusal(tmp_path, row, kind="sft").startswith("rows.jsonl:1: 'label' is false: in KTO's format")
    table = pa.table({"prompt": ["a"], "completion": ["b"], "label": [Decimal("0.0")], "rejected": pa.nulls(1)})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows.parquet:row 1: 'label' is 0.0: in KTO's format"):
        read_records(str(tmp_path / "rows.parquet"), format=DataFormat.auto, kind="sft")


def test_a_column_of_classes_means_the_same_in_the_held_out_file(tmp_path: Path) -> None:
    def write(name: str, *labels: int) -> str:
        rows = labelled(*labels, prompt=name)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    config = DataConfig(train=write("train.jsonl", 0, 1, 5), held_out=write("held_out.jsonl", 0, 1))
    splits = read_splits(config, kind="sft", seed=0, measured=write("measured.jsonl", 1, 0))
    assert (len(splits.train), len(splits.held_out or [])) == (3, 2)
    with pytest.raises(UserError, match=r"held_out.jsonl:1: 'label' is 0: in KTO's format"):
        read_splits(DataConfig(train=write("train.jsonl", 1, 1), held_out=config.held_out), kind="sft", seed=0)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, HI], "rejected_message": NO, "split": "TRAIN"},  # OpenPipe
        {"prompt": USER["content"], "chosen": [USER, HI], "rejected": [USER, NO], "chosen-rating": 5.0},  # Argilla
        {"chosen": [USER, HI], "rejected": [USER, NO]},  # SageMaker
        {"input": {"messages": [USER]}, "preferred_output": [HI], "non_preferred_output": [NO]},  # Together, Fireworks
    ],
)
def test_pairs_of_other_systems_are_one_pair(tmp_path: Path, row: Any) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (record,) = read_records(str(tmp_path / "a.jsonl"), format=DataFormat.auto, kind="preference").records
    assert isinstance(record, PreferencePair)
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [HI], [NO])


@pytest.mark.parametrize(
    ("row", "kind", "part"),
    [
        ({"messages": [USER, HI]}, "preference", "These are demonstrations: set algorithm=sft."),
        ({"prompt": "a", "completion": "b"}, "preference", "These are demonstrations: set algorithm=sft."),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "sft", "These are pairs: set algorithm=dpo."),
        ({"chosen": [USER, HI], "rejected": [USER, NO]}, "sft", "These are pairs: set algorithm=dpo."),
    ],
)
def test_rows_of_another_kind_are_named(tmp_path: Path, row: Any, kind: str, part: str) -> None:
    assert part in refusal(tmp_path, row, kind=kind)


def write_csv(tmp_path: Path, *rows: dict[str, Any]) -> str:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(tmp_path / "rows.csv")


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_messages_that_a_cell_holds_as_text_are_messages(tmp_path: Path, write: Any) -> None:
    tools = [{"type": "function", "function": {"name": "clock"}}]
    row = {"prompt": write([USER]), "chosen": write([HI]), "rejected": write([NO]), "tools": write(tools)}
    result = read_records(write_csv(tmp_path, row), format=DataFormat.auto, kind="preference")
    pair: Any = result.records[0]
    assert (pair.prompt, pair.chosen, pair.rejected, pair.tools) == ([USER], [HI], [NO], tools)
    assert result.notes.num_parsed == 1
    turns = {
        "conversations": write([{"from": "human", "value": "Say hi."}]),
        "chosen": write({"from": "gpt", "value": "Hi!"}),
        "rejected": write({"from": "gpt", "value": "No."}),
    }
    pair = read_records(write_csv(tmp_path, turns), format=DataFormat.auto, kind="preference").records[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [HI], [NO])


def test_messages_in_a_cell_are_found_whatever_their_first_key_is_and_behind_blanks(tmp_path: Path) -> None:
    row = {
        "prompt": json.dumps([{"name": "Ann", **USER}]),
        "chosen": f" {json.dumps([HI])}",
        "rejected": json.dumps([NO]),
    }
    pair: Any = read_records(write_csv(tmp_path, row), format=DataFormat.auto, kind="preference").records[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([{"name": "Ann", **USER}], [HI], [NO])


@pytest.mark.parametrize(
    "answer", ['{"role": "admin"}', '[{"value": 1}]', "[{'name': 'x'}]", "[citation needed]", "{}"]
)
def test_an_answer_in_json_is_text_like_any_other(tmp_path: Path, answer: str) -> None:
    assert record(tmp_path, {"prompt": "a", "completion": answer}, "sft").completion == answer


def test_a_numpy_array_that_pandas_printed_is_refused_with_the_way_out(tmp_path: Path) -> None:
    printed = "[{'content': 'Say hi.', 'role': 'user'}\n {'content': 'Hi!', 'role': 'assistant'}]"
    path = write_csv(tmp_path, {"messages": printed})
    with pytest.raises(UserError, match=r"rows.csv:row 1: 'messages' is text that begins as a list .*to_json\(path"):
        read_records(path, format=DataFormat.auto, kind="sft")


def test_a_key_that_stands_twice_in_python_text_is_refused_as_in_json(tmp_path: Path) -> None:
    for twice in ("'content': 'No.', 'role': 'user', 'content'", "'role': 'user', 'x': {1: 2, '1': 3}, 'content'"):
        path = write_csv(tmp_path, {"messages": f"[{{{twice}: 'Say hi.'}}, {HI!r}]"})
        with pytest.raises(UserError, match=r"rows.csv:row 1: 'messages' is text .*: the key \"\w+\" stands twice"):
            read_records(path, format=DataFormat.auto, kind="sft")
    message = refusal(tmp_path, {"messages": [USER, HI], "tools": "[{'name': 'f', 'name': 'g'}]"}, kind="sft")
    assert 'the key "name" stands twice in one object' in message


ROW = '{"prompt": "a", "chosen": "b", "rejected": "c", %s}'


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('"chosen": "d"', "chosen"),
        ('"id": 1, "tools": [{"a": {"b": 1, "c": 2, "b": 3}}]', "b"),
        ('"id": 1, "id": 2, "prompt": "b"', "prompt"),
    ],
)
def test_a_key_that_stands_twice_in_what_is_read_is_refused(tmp_path: Path, more: str, key: str) -> None:
    for name, text, place in (
        ("a.jsonl", ROW % '"id": 1' + "\n" + ROW % more, "2"),
        ("a.json", "[" + ROW % '"id": 1' + ",\n" + ROW % more + "]", "row 2"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as caught:
            read_records(str(tmp_path / name), format=DataFormat.auto, kind="preference")
        wanted = f'{tmp_path}/{name}:{place}: the key "{key}" stands twice in one object; remove one of them.'
        assert str(caught.value).startswith(wanted)


CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '


@pytest.mark.parametrize(
    ("row", "kind", "key"),
    [
        ('{"prompt": "a", "completion": "b", "label": false, "label": true}', "sft", "label"),
        (CHAT + '"kto_tag": false, "kto_tag": true}', "sft", "kto_tag"),
        (CHAT + '"prompt": "of another", "prompt": "a"}', "sft", "prompt"),
        (CHAT + '"label": 0, "rejected": null, "rejected": "c"}', "sft", "rejected"),
        (ROW % '"images": ["x.png"], "images": []', "preference", "images"),
    ],
)
def test_a_key_that_stands_twice_in_a_column_that_decides_over_its_row_is_refused(
    tmp_path: Path, row: str, kind: Any, key: str
) -> None:
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(UserError, match=f'a.jsonl:1: the key "{key}" stands twice in one object'):
        read_records(str(tmp_path / "a.jsonl"), format=DataFormat.auto, kind=kind)


def test_a_key_that_stands_twice_where_nothing_reads_it_is_noted(tmp_path: Path) -> None:
    rows = (ROW % '"id": 1, "id": 2', ROW % '"raw": [{"x": {"a": 1, "a": 2}}]', ROW % '"id": 3')
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "a.json").write_text("[" + ",\n".join(rows) + "]")
    for name in ("a.jsonl", "a.json"):
        result = read_records(str(tmp_path / name), format=DataFormat.auto, kind="preference")
        assert [record.chosen for record in result.records] == ["b"] * 3  # type: ignore[union-attr]
        assert (result.notes.num_repeated_keys, result.notes.ignored_columns) == (2, {"id": 2, "raw": 1})


def test_a_row_that_would_fill_the_memory_is_refused_before_it_is_tokenised(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("prefopt.data.rows.MAX_CHARACTERS", 1000)
    pair = {"prompt": "a", "chosen": "b" * 600, "rejected": "c" * 400}
    message = refusal(tmp_path, pair)
    assert (
        message == "rows.jsonl:1: the row has 1,001 characters, and at most 1,000 are tokenised. Split it, or drop it."
    )
    chat = {"messages": [USER, {**HI, "tool_calls": [{"name": "f", "arguments": {"x": "y" * 1000}}]}]}
    assert "at most 1,000 are tokenised" in refusal(tmp_path, chat, kind="sft")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tools": [1]}, "'tools' must be a list of objects, found a number (1) in it"),
        ({"tools": [{"a": "\ud83d"}]}, "'tools' holds half of a UTF-16 pair"),
        ({"tools": [json.loads("[" * 80 + "]" * 80), {}]}, "'tools' must be a list of objects, found a list ([[["),
        ({"tools": [{"a": json.loads("[" * 80 + "]" * 80)}]}, "'tools' has more than 64 lists and objects inside"),
        ({"chat_template_kwargs": {"a": json.loads("[" * 80 + "]" * 80)}}, "'chat_template_kwargs' has more than 64"),
        ({"chosen": [{**HI, "name": "\ud83d"}]}, "'chosen[0].name' holds half of a UTF-16 pair"),
        (
            {"chosen": [{"role": "assistant", "tool_calls": [{"name": "\ud83d"}]}]},
            "'chosen[0].tool_calls' holds half of a UTF-16 pair",
        ),
        ({"chosen": [{**HI, "role": ["assistant"]}]}, "'chosen[0].role' must be one of"),
    ],
)
def test_values_that_nothing_could_render_are_refused(tmp_path: Path, change: Any, part: str) -> None:
    assert part in refusal(tmp_path, {"prompt": [USER], "chosen": [HI], "rejected": [NO], **change})


def test_names_of_fields_are_shown_so_that_they_can_be_written(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "\ud83d": 1}
    assert read(tmp_path, row).notes.ignored_columns == {"\\ud83d": 1}
    many = refusal(tmp_path, {f"field_{number}": 1 for number in range(40)})
    assert "'field_11' and 28 more." in many
