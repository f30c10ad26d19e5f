"""Files of other shapes than a row a line: lists in objects, lists in lists, objects over lines, rare separators."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import DataFormat
from prefopt.data.reading import read_records
from prefopt.process.errors import UserError

ROWS = [{"prompt": f"p{number}", "chosen": "y", "rejected": "n"} for number in range(3)]
CHAT = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "y"}]
TURNS = [{"from": "human", "value": "p"}, {"from": "gpt", "value": "y"}]


def read(tmp_path: Path, text: str, *, name: str = "a.json", kind: Any = "preference") -> list[Any]:
    (tmp_path / name).write_text(text)
    return [*read_records(str(tmp_path / name), format=DataFormat.auto, kind=kind).records]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"data": ROWS}, indent=2),
        json.dumps({"version": "1.0", "examples": ROWS}),
        json.dumps({"anything": ROWS}, indent=1),
        "\n" + json.dumps({"rows": ROWS}) + "\n\n",
        json.dumps([ROWS]),
        json.dumps([ROWS], indent=2),
        json.dumps(ROWS, indent=4),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(json.dumps(row, indent=2) for row in ROWS),
        "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_are_found_in_what_is_around_them(tmp_path: Path, text: str, name: str) -> None:
    records = read(tmp_path, text, name=name)
    assert [(each.prompt, each.chosen, each.rejected) for each in records] == [(f"p{n}", "y", "n") for n in range(3)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": TURNS},
        {"messages": [CHAT]},
        {"conversations": [TURNS]},
        [CHAT],
        [TURNS],
        [[{"messages": CHAT}]],
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_messages_is_a_conversation_at_any_depth(tmp_path: Path, row: Any, indent: Any) -> None:
    (record,) = read(tmp_path, json.dumps(row, indent=indent), kind="sft")
    assert record.messages == CHAT


def test_a_row_of_rated_answers_alone_in_its_file_is_a_row(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": [{"response": "n", "score": 1}, {"response": "y", "score": 2}]}
    (record,) = read(tmp_path, json.dumps(row, indent=2))
    assert (record.chosen, record.rejected) == ("y", "n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p",\n"chosen": "y", oops}\n', r"a.json:1: invalid JSON"),
        ('{"data": [1, 2]}', r"a.json:1: field 'chosen' is missing; found 'data'"),
        ('{"data": []}', r"a.json: holds no rows"),
        ('{"data": [{"prompt": "p"}], "rows": [{"prompt": "p"}]}', r"a.json:1: field 'chosen' is missing"),
    ],
)
def test_what_is_no_such_file_is_told_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "^", ":", "~", "\x1f", "\x01"])
def test_a_table_may_have_any_separator_that_its_header_shows(tmp_path: Path, separator: str) -> None:
    lines = [separator.join(cells) for cells in (["prompt", "chosen", "rejected"], ["p", "yes it is", "no"])]
    (record,) = read(tmp_path, "\n".join(lines), name="a.csv")
    assert (record.prompt, record.chosen, record.rejected) == ("p", "yes it is", "no")


def test_blanks_are_no_separator_and_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.csv:1: the header is one column, 'prompt chosen rejected'.*Separate"):
        read(tmp_path, "prompt chosen rejected\na b c\n", name="a.csv")
    (record,) = read(tmp_path, "text\na b c\n", name="a.csv", kind="sft")
    assert record.text == "a b c"
