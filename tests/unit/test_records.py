"""Reading: what a row becomes, and what an error says about a row that cannot be read."""

import gzip
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from trl.data_utils import extract_prompt

from prefopt.config.choices import DataFormat, OnBadRow
from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.defects import drop_defects
from prefopt.data.implicit_prompts import split_common_prompt
from prefopt.data.messages import RESERVED_KWARGS, trained_turns
from prefopt.data.notes import DataNotes
from prefopt.data.read_notes import ReadNotes
from prefopt.data.reading import ReadResult, read_records
from prefopt.data.records import PreferencePair
from prefopt.process.errors import UserError

PAIR = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}
USER = {"role": "user", "content": "Say hi."}
HI = {"role": "assistant", "content": "Hi!"}
NO = {"role": "assistant", "content": "No."}
CHAT_PAIR = {"prompt": [USER], "chosen": [HI], "rejected": [NO]}


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(spec: Any, kind: str = "preference", format: DataFormat = DataFormat.auto) -> ReadResult:
    return read_records(spec, format=format, kind=kind)  # type: ignore[arg-type]


def message_of(spec: Any, kind: str = "preference") -> str:
    with pytest.raises(UserError) as caught:
        read(spec, kind)
    return str(caught.value)


def error_of(tmp_path: Path, *rows: Any, kind: str = "preference") -> str:
    message = message_of(str(write_jsonl(tmp_path / "rows.jsonl", *rows)), kind)
    return message.replace(str(tmp_path) + "/", "")


def test_a_text_row_becomes_a_pair_that_knows_its_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", PAIR)
    assert read(str(path)).records == [PreferencePair("Say hi.", "Hi!", "No.", None, {}, f"{path}:1")]


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", "", PAIR, "  ", PAIR)
    assert [record.source for record in read(str(path)).records] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"]
)
def test_every_file_type_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [PAIR, {"prompt": 'Tell, "twice"\nplease é', "chosen": "ja", "rejected": "nein"}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        if ".jsonl" in name:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif ".json" in name:
            text = json.dumps(rows)
        elif ".tsv" in name:
            text = 'prompt\tchosen\trejected\nSay hi.\tHi!\tNo.\n"Tell, ""twice""\nplease é"\tja\tnein\n'
        else:
            text = 'prompt,chosen,rejected\nSay hi.,Hi!,No.\n"Tell, ""twice""\nplease é",ja,nein\n'
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    records = read(str(path)).records
    assert [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in records] == rows
    assert records[1].source == (f"{path}:2" if ".jsonl" in name else f"{path}:row 2")


def test_lists_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", {**PAIR, "prompt": name})
    assert [r.prompt for r in read(str(tmp_path / "*.jsonl")).records] == ["a", "b"]
    paths = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]
    assert [r.prompt for r in read(paths).records] == ["b", "a"]


def test_a_datasets_folder_is_read_and_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([CHAT_PAIR])
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "both"))
    assert read(str(tmp_path / "both" / "train")).records[0].chosen == [HI]
    assert "Name one: " + str(tmp_path / "both" / "train") in message_of(str(tmp_path / "both"))


def test_hub_data_sets_name_their_split_and_say_when_they_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str) -> Any:
        asked.append((name, split))
        if name == "org/none":
            raise FileNotFoundError("no such data set")
        return datasets.Dataset.from_list([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("hub:org/pairs").records[0].source == "hub:org/pairs:row 1"
    assert read("hub:org/pairs:test").records[0].source == "hub:org/pairs:test:row 1"
    assert "hub:org/none: the hub has no such data set" in message_of("hub:org/none")
    assert asked == [("org/pairs", "train"), ("org/pairs", "test"), ("org/none", "train")]


def test_reading_imports_no_heavy_package() -> None:
    code = (
        "import prefopt.data.loading, sys; "
        "print({'torch', 'transformers', 'datasets', 'pyarrow', 'trl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_utf8_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode())
    assert len(read(str(path)).records) == 1


def test_an_implicit_prompt_is_what_both_completions_begin_with(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"chosen": [USER, HI], "rejected": [USER, NO]})
    record = read(str(path)).records[0]
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [HI], [NO])


def test_a_text_prompt_beside_whole_conversations_is_left_aside(tmp_path: Path) -> None:
    row = {"prompt": "Say hi.", "chosen": [USER, HI], "rejected": [USER, NO]}
    result = read(str(write_jsonl(tmp_path / "rows.jsonl", row)))
    assert result.records[0].prompt == [USER]
    assert result.notes.ignored_columns == {"prompt": 1}


MESSAGES = st.lists(st.sampled_from([USER, HI, NO]), min_size=1, max_size=4)


@given(MESSAGES, MESSAGES)
def test_the_common_prompt_of_messages_is_that_of_trl(chosen: list[Any], rejected: list[Any]) -> None:
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    names = ("prompt", "chosen", "rejected")
    assert dict(zip(names, split_common_prompt(chosen, rejected), strict=True)) == expected


def test_tools_may_be_a_list_or_its_json_text_and_an_empty_list_is_none(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock"}}]
    rows = [{**CHAT_PAIR, "tools": value} for value in (tools, json.dumps(tools), [], "", None)]
    records = read(str(write_jsonl(tmp_path / "rows.jsonl", *rows))).records
    assert [record.tools for record in records] == [tools, tools, None, None, None]


def test_null_keys_of_messages_are_left_out(tmp_path: Path) -> None:
    row = {**CHAT_PAIR, "chosen": [{**HI, "tool_calls": None, "name": None}]}
    assert read(str(write_jsonl(tmp_path / "rows.jsonl", row))).records[0].chosen == [HI]


@pytest.mark.parametrize("loss", [1.37, "low"])
def test_a_loss_that_somebody_measured_marks_no_turn(tmp_path: Path, loss: Any) -> None:
    row = {"messages": [USER, {**HI, "loss": loss}]}
    record: Any = read(str(write_jsonl(tmp_path / "rows.jsonl", row)), "sft").records[0]
    assert record.messages == row["messages"]


@pytest.mark.parametrize(
    ("key", "value"), [("weight", 0), ("weight", 0.0), ("train", False), ("loss", False), ("loss", 0)]
)
def test_a_mark_on_an_answer_says_that_its_turn_is_not_trained(tmp_path: Path, key: str, value: Any) -> None:
    row = {"messages": [USER, {**NO, key: value}, {**USER, "weight": 0}, {**HI, key: not value}]}
    record: Any = read(str(write_jsonl(tmp_path / "rows.jsonl", row)), "sft").records[0]
    assert record.messages == [USER, {**NO, "train": False}, USER, HI]
    assert trained_turns(record.messages) == [3]


def test_content_in_parts_of_text_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Say "}, {"text": "hi."}]
    row = {**CHAT_PAIR, "prompt": [{"role": "user", "content": parts}]}
    assert read(str(write_jsonl(tmp_path / "rows.jsonl", row))).records[0].prompt == [USER]


def test_a_row_may_pass_variables_to_the_template_and_nothing_else(tmp_path: Path) -> None:
    row = {**CHAT_PAIR, "chat_template_kwargs": {"enable_thinking": False, "documents": []}}
    kwargs = read(str(write_jsonl(tmp_path / "rows.jsonl", row))).records[0].chat_template_kwargs
    assert kwargs == row["chat_template_kwargs"]
    parameters = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    special = set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    own = parameters - {"self", "documents", "kwargs"} | special - {"additional_special_tokens"}
    assert own <= RESERVED_KWARGS


def test_unread_columns_are_counted_where_they_hold_a_value(tmp_path: Path) -> None:
    rows = [{**PAIR, "score": 1, "tag": None}, {**PAIR, "score": 2}, {**PAIR, "tag": "x"}]
    assert read(str(write_jsonl(tmp_path / "rows.jsonl", *rows))).notes.ignored_columns == {"score": 2, "tag": 1}


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ({"text": "Once."}, "text", "Once."),
        ({"prompt": "Say hi.", "completion": "Hi!"}, "completion", "Hi!"),
        ({"prompt": [USER], "completion": [HI]}, "completion", [HI]),
        ({"messages": [USER, HI]}, "messages", [USER, HI]),
    ],
)
def test_demonstrations_keep_the_fields_they_come_in(tmp_path: Path, row: Any, field: str, value: Any) -> None:
    record = read(str(write_jsonl(tmp_path / "rows.jsonl", row)), "sft").records[0]
    assert getattr(record, field) == value


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("{nope", ["rows.jsonl:2: invalid JSON: Expecting property name", "column 2"]),
        ("[1]", ["rows.jsonl:2: a row must be an object", "found a list ([1])"]),
        (
            {"prompt": "a", "chosen": "b", "reject": "c"},
            ["'rejected' is missing", "data.columns={rejected: reject}"],
        ),
        ({"conversations": [{"from": "human", "value": "q"}]}, ["'chosen' is missing", "set algorithm=sft."]),
        ({**PAIR, "chosen": 3}, ["rows.jsonl:2: 'chosen' must be text or a list of messages", "found a number (3)"]),
        ({**PAIR, "chosen": None}, ["rows.jsonl:2: field 'chosen' is missing"]),
        ({**PAIR, "chosen": [HI]}, ["'rejected' is text", "Either all are text"]),
        ({**PAIR, "prompt": [USER], "rejected": [NO]}, ["'prompt' is a list", "Either all are text"]),
        ({**PAIR, "prompt": "\ud83d"}, ["'prompt' holds half of a UTF-16 pair at character 0"]),
        ({**PAIR, "images": ["a.png"]}, ["'images' holds images"]),
        ({**CHAT_PAIR, "tools": "{"}, ["'tools' is not valid JSON"]),
        ({**CHAT_PAIR, "tools": {"a": 1}}, ["'tools' must be a list"]),
        ({**CHAT_PAIR, "chat_template_kwargs": "x"}, ["'chat_template_kwargs' must be an object"]),
        (
            {**CHAT_PAIR, "chat_template_kwargs": {"chat_template": "x"}},
            ["'chat_template_kwargs' may not hold 'chat_template'", "set model.chat_template"],
        ),
        (
            {**CHAT_PAIR, "chosen": [{"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}]},
            ["'chosen[0].content[0]' must be a part {type: text, text}, found an object"],
        ),
        ({**CHAT_PAIR, "chosen": [{**HI, "weight": 0.5}]}, ["'chosen[0].weight' must be 0 or 1", "(0.5)"]),
        (
            {**CHAT_PAIR, "prompt": [{**USER, "train": True}]},
            ["'prompt[0].train' asks to train", "Remove 'train' from all messages of"],
        ),
        ({**CHAT_PAIR, "chosen": [{**HI, "loss": False}]}, ["every assistant turn of 'chosen' is marked"]),
        ({**CHAT_PAIR, "chosen": []}, ["'chosen' is an empty list"]),
        ({**CHAT_PAIR, "chosen": [{"role": "bot", "content": "x"}]}, ["'chosen[0].role' must be one of system"]),
        ({**CHAT_PAIR, "chosen": [{"from": "gpt", "value": "x"}]}, ["this row is sharegpt, but", "one format"]),
        ({**CHAT_PAIR, "chosen": [{"role": "assistant"}]}, ["'chosen[0].content' is missing"]),
        ({**CHAT_PAIR, "prompt": [{"role": "user", "content": 1}]}, ["'prompt[0].content' must be text"]),
        ({**CHAT_PAIR, "chosen": [USER, HI]}, ["'chosen' repeats the messages of 'prompt'"]),
        ({**CHAT_PAIR, "chosen": [HI, {"role": "user", "content": "x"}]}, ["must end with an assistant message"]),
        ({**CHAT_PAIR, "rejected": [{"role": "tool", "content": "x"}, NO]}, ["must begin with an assistant message"]),
        ({**CHAT_PAIR, "prompt": [USER, NO]}, ["'prompt' must not end with an assistant message"]),
        ({"chosen": [HI], "rejected": [NO]}, ["no common beginning"]),
        ({"input": "q", "chosen": "a", "rejected": "b"}, ["no common beginning", "'data.columns={prompt: input}'"]),
        (
            {"prompt": "Q?", "chosen": [asked("Q?"), HI], "rejected": [asked("Q? "), NO]},
            ["message 1, of role 'user', is text (\"Q?\") in 'chosen' and text (\"Q? \") in 'rejected'. Make both"],
        ),
        ({"chosen": [asked("Q 1"), HI], "rejected": [asked("Q 2"), NO]}, ["different questions", 'text ("Q 2")']),
        (
            {"chosen": [USER, HI, asked("a" * 99 + "b"), HI], "rejected": [USER, HI, asked("a" * 99 + "c"), NO]},
            ["message 3, of role 'user', is, from character 79,", f"text (\"{'a' * 20}c\") in 'rejected'"],
        ),
    ],
)
def test_a_bad_row_is_refused_by_its_place_and_what_is_wrong(tmp_path: Path, row: Any, parts: list[str]) -> None:
    message = error_of(tmp_path, CHAT_PAIR if isinstance(row, dict) and "tools" in row else PAIR, row)
    assert message.startswith("rows.jsonl:2: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompts": "a"}, "needs 'messages', or 'prompt' and 'completion', or 'text'; found 'prompts'."),
        ({"question_id": 3, "prompts": "a", "answer": "b"}, "'data.columns={prompt: prompts, completion: answer}'"),
        ({"conversation": []}, "'data.columns={messages: conversation}'"),
        ({"response_a": "a", "response_b": "b", "winner": "a"}, "These are pairs: set algorithm=dpo."),
        ({"preferred_output": [], "non_preferred_output": []}, "These are pairs: set algorithm=dpo."),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "These are pairs: set algorithm=dpo."),
        ({"prompt": "a"}, "field 'completion' is missing"),
        ({"messages": [USER]}, "has one message"),
        ({"messages": [USER, HI, USER]}, "must end with an assistant message, found role 'user'"),
        ({"text": 1}, "'text' must be text"),
        ({"messages": [USER, {**HI, "weight": 0}]}, "every assistant turn of 'messages' is marked as not trained"),
    ],
)
def test_a_bad_demonstration_is_refused(tmp_path: Path, row: Any, part: str) -> None:
    assert part in error_of(tmp_path, row, kind="sft")


@pytest.mark.parametrize(("row", "is_told"), [({"text": "a"}, True), ({"prompt": "q", "text": "a"}, False)])
def test_demonstrations_among_pairs_are_told_only_where_they_could_be_read_so(
    row: Any, is_told: bool, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        read(str(write_jsonl(tmp_path / "rows.jsonl", row)))
    assert ("set algorithm=sft" in str(error.value)) == is_told


def test_mixed_rows_are_refused_naming_both(tmp_path: Path) -> None:
    message = error_of(tmp_path, PAIR, PAIR, CHAT_PAIR)
    assert message.startswith("rows.jsonl:3: this row is trl with prompt + chosen + rejected as messages, but ")
    assert "rows.jsonl:1 is trl with prompt + chosen + rejected as text" in message


def test_explicit_and_implicit_prompts_do_not_mix(tmp_path: Path) -> None:
    assert "chosen + rejected as text" in error_of(tmp_path, PAIR, {"chosen": "Hi a", "rejected": "Hi b"})


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", PAIR)
    assert f"Did you mean {tmp_path / 'train.jsonl'}?" in message_of(str(tmp_path / "trian.jsonl"))
    assert "no file matches this pattern" in message_of(str(tmp_path / "*.csv"))
    (tmp_path / "empty.jsonl").touch()
    assert "the file is empty (0 bytes)" in message_of(str(tmp_path / "empty.jsonl"))
    (tmp_path / "none.json").write_text("[]")
    assert "holds no rows" in message_of(str(tmp_path / "none.json"))
    (tmp_path / "a.txt").write_text("x")
    assert "unsupported file type. Allowed: .jsonl" in message_of(str(tmp_path / "a.txt"))
    (tmp_path / "object.json").write_text('{\n"data": []}')
    assert "object.json: holds no rows" in message_of(str(tmp_path / "object.json"))
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(PAIR).encode() + b'\n{"a": "\xff"}\n')
    assert "bad.jsonl:2: not valid UTF-8: byte 0xff at position 7" in message_of(str(tmp_path / "bad.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode())[:-9])
    assert "not a complete gzip file" in message_of(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "ragged.csv").write_text("prompt,chosen,rejected\na,b\n")
    assert "ragged.csv:row 1: the header has 3 columns" in message_of(str(tmp_path / "ragged.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    assert "not a readable Parquet file" in message_of(str(tmp_path / "bad.parquet"))
    assert "a folder, but not one of `datasets`" in message_of(str(tmp_path))
    assert "the list of data files is empty" in message_of([])


def defects(tmp_path: Path, setting: OnBadRow, *rows: Any) -> tuple[list[Any], ReadNotes]:
    result = read(str(write_jsonl(tmp_path / "rows.jsonl", *rows)))
    bad = BadRows("data.train", DataConfig(train="rows.jsonl", on_empty=setting, on_identical=setting))
    kept = drop_defects(result.records, bad, result.notes)
    require_usable(bad)
    return kept, result.notes


def test_identical_is_judged_after_strip_and_by_content(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": " Hi!\n"}
    kept, notes = defects(tmp_path, OnBadRow.skip, PAIR, same)
    assert (len(kept), notes.num_identical_skipped) == (1, 1)
    kept, notes = defects(tmp_path, OnBadRow.skip, CHAT_PAIR, {**CHAT_PAIR, "rejected": [{**HI, "content": "Hi! "}]})
    assert (len(kept), notes.num_identical_skipped) == (1, 1)


def test_an_identical_pair_is_refused_with_the_count_and_the_setting(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": "Hi!"}
    with pytest.raises(UserError, match=r"rows.jsonl:2: this row has 'rejected' equal to 'chosen' .so in 2 rows") as e:
        defects(tmp_path, OnBadRow.refuse, PAIR, same, PAIR, same)
    assert "rows.jsonl:4" in str(e.value)
    assert "set data.on_identical=skip" in str(e.value)


def test_an_empty_completion_is_refused_or_counted(tmp_path: Path) -> None:
    blank = {**PAIR, "chosen": " \n"}
    with pytest.raises(UserError, match=r"rows.jsonl:2: this row has an empty completion\. .* data.on_empty=skip"):
        defects(tmp_path, OnBadRow.refuse, PAIR, blank)
    both_blank = {**PAIR, "chosen": "", "rejected": ""}
    kept, notes = defects(tmp_path, OnBadRow.skip, PAIR, blank, both_blank)
    assert (len(kept), notes.num_empty_skipped, notes.num_identical_skipped) == (1, 2, 0)


def test_a_tool_call_without_text_is_not_empty(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}
    kept, notes = defects(tmp_path, OnBadRow.refuse, {**CHAT_PAIR, "chosen": [call]})
    assert (len(kept), notes.num_empty_skipped) == (1, 0)


def test_exact_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    kept, notes = defects(tmp_path, OnBadRow.refuse, PAIR, PAIR, {**PAIR, "prompt": "Other."}, PAIR)
    assert (len(kept), notes.num_duplicates) == (4, 2)


def named(tmp_path: Path, rows: list[dict[str, Any]], **columns: str) -> ReadResult:
    return read_records(
        write_jsonl(tmp_path / "rows.jsonl", *rows), format=DataFormat.auto, kind="preference", columns=columns
    )


TIE = {"prompt": "Hi?", "response_a": "Hi!", "response_b": "No.", "winner": "tie"}
LABELLED = {"prompt": "Hi?", "completion": "Hi!", "label": True}


@pytest.mark.parametrize(("other", "format"), [(TIE, "ab"), (LABELLED, "kto")])
def test_a_row_of_another_format_is_refused_also_if_it_is_no_pair(
    tmp_path: Path, other: dict[str, Any], format: str
) -> None:
    with pytest.raises(UserError, match=rf"rows.jsonl:2: this row is {format}, but .*rows.jsonl:1 is trl"):
        named(tmp_path, [PAIR, other, PAIR])
    with pytest.raises(UserError, match=rf"rows.jsonl:2: this row is trl, but .*rows.jsonl:1 is {format}"):
        named(tmp_path, [other, PAIR])
    path = write_jsonl(tmp_path / "rows.jsonl", PAIR, other, other, PAIR)
    bad = BadRows("data.train", DataConfig(train=path, on_bad=OnBadRow.skip))
    result = read_records(path, format=DataFormat.auto, kind="preference", bad=bad)
    counts = vars(result.notes)
    assert [counts[f"num_{name}_skipped"] for name in ("other_shape", "ties", "waiting")] == [2, 0, 0]


def test_a_first_row_that_cannot_be_read_decides_no_format(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        named(tmp_path, [{"foo": 1}, LABELLED, {**LABELLED, "label": False}])
    assert "kto" not in str(raised.value)


def test_columns_are_read_under_the_names_that_the_settings_give(tmp_path: Path) -> None:
    row = {"question": "q", "good": "yes", "bad": "no", "id": 3}
    result = named(tmp_path, [row, PAIR], prompt="question", chosen="good", rejected="bad")
    first, second = result.records
    assert (first.prompt, first.chosen, first.rejected) == ("q", "yes", "no")
    assert (second.prompt, second.chosen, second.rejected) == (PAIR["prompt"], PAIR["chosen"], PAIR["rejected"])
    assert result.notes.ignored_columns == {"id": 1}


def test_a_mapped_column_that_no_row_has_is_told(tmp_path: Path) -> None:
    notes = named(tmp_path, [PAIR, PAIR], prompt="question", system="persona").notes
    told = DataNotes(read={"train": notes}).lines()
    assert told == ["train: 2 rows read", "train: no row has a column 'persona' to be read as 'system' (data.columns)"]


def test_two_columns_may_be_exchanged(tmp_path: Path) -> None:
    (record,) = named(tmp_path, [PAIR], chosen="rejected", rejected="chosen").records
    assert (record.chosen, record.rejected) == (PAIR["rejected"], PAIR["chosen"])


def test_a_value_under_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.columns reads 'question' as 'prompt', but the row has 'prompt' too"):
        named(tmp_path, [PAIR | {"question": "q"}], prompt="question")


@pytest.mark.parametrize(
    ("rows", "mapping"),
    [
        ({"question": "q", "good": "y", "bad": "n"}, "{prompt: question, chosen: good, rejected: bad}"),
        ({"prompt": "q", "choosen": "y", "rejected": "n"}, "{chosen: choosen}"),
        ({"my query": "q", "better answer": "y", "worse answer": "n"}, None),
        ({"fråga prompt": "q", "best, of all": "y", "worst: {x}": "n"}, None),
        (
            [{"question": "q", "answer": text, "thumbs_up": text == "y"} for text in "yn"],
            "{completion: answer, label: thumbs_up}",
        ),
        (
            [{"asked by user": "q", "response": text, "feedback": mood} for text, mood in (("y", "👍"), ("n", "👎"))],
            '{prompt: "asked by user", label: feedback}',
        ),
        (
            {"messages": "q", "responses": [{"text": "y", "rating": 5}, {"text": "n", "rating": 1}]},
            "{prompt: messages}",
        ),
    ],
)
def test_the_mapping_that_an_error_suggests_reads_the_row(tmp_path: Path, rows: Any, mapping: str | None) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *(rows if isinstance(rows, list) else [rows]))
    with pytest.raises(UserError) as refused:
        read_records(path, format=DataFormat.auto, kind="preference")
    (suggested,) = re.findall(r"'(data\.columns=.*)'", str(refused.value))
    assert mapping is None or suggested == f"data.columns={mapping}"
    config = load_config(["data=files", f"data.train={path}", suggested, "data.held_out_fraction=0"])
    (record,) = read_records(path, format=DataFormat.auto, kind="preference", columns=config.data.columns).records
    assert (record.prompt, record.chosen, record.rejected) == ("q", "y", "n")


def test_a_column_that_only_sounds_like_a_label_is_not_suggested(tmp_path: Path) -> None:
    assert "data.columns" not in error_of(tmp_path, {"prompt": "q", "completion": "y", "feedback": "Well written."})


@pytest.mark.parametrize("name", ["chosen" + "[" * 900, "it's chosen", 'chosen "one"', "chosen\x1b[2J", "chosen\\"])
def test_a_name_that_cannot_be_typed_is_not_suggested(tmp_path: Path, name: str) -> None:
    message = error_of(tmp_path, {"prompt": "q", name: "y", "rejected": "n"})
    assert "data.columns" not in message
    assert len(message) < 300


@pytest.mark.parametrize("columns", ["{promt: question}", "{prompt: q, chosen: q}"])
def test_a_mapping_without_sense_is_refused(columns: str) -> None:
    with pytest.raises(UserError, match=r"data\.columns: "):
        load_config(["data=files", "data.train=x.jsonl", f"data.columns={columns}"])


def test_answers_of_text_to_a_prompt_of_messages_are_the_assistants(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "q"}]
    (record,) = read(
        write_jsonl(tmp_path / "rows.jsonl", {"prompt": prompt, "chosen": "yes", "rejected": "no"})
    ).records
    assert record.chosen == [{"role": "assistant", "content": "yes"}]
    (example,) = read(write_jsonl(tmp_path / "rows.jsonl", {"prompt": prompt, "completion": "yes"}), "sft").records
    assert example.completion == [{"role": "assistant", "content": "yes"}]
