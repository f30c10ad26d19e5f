"""Files: read whatever their name promises, or refused by what they are, in one sentence with the place."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefopt.data import lines
from prefopt.data.files import iter_rows
from prefopt.process.errors import UserError

ROWS = [{"prompt": f"a {n}", "chosen": "y", "rejected": "n"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "prompt,chosen,rejected\na 0,y,n\na 1,y,n\na 2,y,n\n"
TABS = TABLE.replace(",", "\t")


def put(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(spec: str) -> list[Any]:
    return [row for row, _ in iter_rows(spec)]


def refusal(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        read(spec)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gzip_without_gz.jsonl", gzip.compress(LINES.encode(), mtime=0)),
        ("unpacked.jsonl.gz", LINES),
        ("array.jsonl", json.dumps(ROWS)),
        ("indented.jsonl", "\n" + json.dumps(ROWS, indent=2)),
        ("lines.json", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("semicolon.csv", TABLE.replace(",", ";")),
        ("excel.csv", "sep=;\r\n" + TABLE.replace(",", ";")),
        ("excel.tsv", "sep=,\n" + TABLE),
        ("pipe.csv", TABLE.replace(",", "|")),
        ("tabs.csv", TABLE.replace(",", "\t")),
        ("tabs.tsv", TABLE.replace(",", "\t")),
        ("tabs.TSV.gz", TABLE.replace(",", "\t")),
        ("windows.csv", TABLE.replace("\n", "\r\n")),
        ("mac.csv", TABLE.replace("\n", "\r")),
        ("blank_lines.csv", TABLE.replace("\n", "\n\n")),
    ],
)
def test_a_file_is_read_by_what_it_holds(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(put(tmp_path / name, content)) == ROWS


@pytest.mark.parametrize(
    ("name", "mark", "note"),
    [
        ("a.tsv", "\t", "score, of five"),
        ("a.tsv", "\t", "a, b, c, d, e; f"),
        ("a.csv", "\t", "score, of five"),
        ("a.csv", ";", "score, of five"),
        ("a.csv", "|", "score; tab\tand"),
        ("a.csv", ";", '"1,2,3,4,5"'),
    ],
)
def test_another_separator_inside_a_header_cuts_nothing(tmp_path: Path, name: str, mark: str, note: str) -> None:
    table = "\n".join(mark.join(cells) for cells in (["prompt", "chosen", note], ["a, b", "y, z", "1"]))
    assert read(put(tmp_path / name, table)) == [{"prompt": "a, b", "chosen": "y, z", note.strip('"'): "1"}]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", LFS, ["a.jsonl: holds a Git LFS pointer, not the data. Fetch them with: git lfs pull"]),
        ("a.parquet", LFS, ["a.parquet: holds a Git LFS pointer"]),
        ("a.csv", "\n<!DOCTYPE html><html>", ["a.csv: holds a web page"]),
        ("a.jsonl", b"PK\x03\x04zip", ["a.jsonl: holds a zip archive"]),
        ("a.jsonl", b"PAR1...PAR1", ["a.jsonl: holds Parquet data. Name the file .parquet"]),
        ("a.jsonl", LINES.encode("utf-16"), ["a.jsonl: holds text in UTF-16"]),
        ("a.csv", "prompt,chosen,rejected,chosen\n", ["a.csv:1: the header names 'chosen' twice"]),
        ("a.jsonl", LINES + '{"x":' + "[" * 100_000 + "]" * 100_000 + "}", ["a.jsonl:4: ", "nested too deeply"]),
        ("a.json", "[" * 100_000 + "]" * 100_000, ["a.json:1: ", "nested too deeply"]),
        ("a.jsonl", LINES + '{"x": ' + "1" * 5000 + "}", ["a.jsonl:4: a whole number has thousands of digits"]),
        ("a.jsonl", LINES + '{"prompt": "x", "chosen": ', ["a.jsonl:4: invalid JSON: Expecting value at the end"]),
        ("a.jsonl", LINES + '{"prompt": "x"\n', ["a.jsonl:4: invalid JSON: Expecting ',' delimiter at the end"]),
        ("a.json", json.dumps(ROWS) + "\n\nx", ["a.json:3: invalid JSON: Extra data"]),
        ("a.json", "[" + json.dumps(ROWS[0]) + ",]", ["a.json:1: invalid JSON: Expecting value"]),
        ("a.csv", TABLE + 'a 3,"y', ["a.csv:row 4: invalid CSV: unexpected end of data"]),
        ("a.csv", TABLE + "a 3,y\n", ["a.csv:row 4: the header has 3 columns, this row has 2"]),
        ("a.csv", "\n\n", ["a.csv: holds no rows"]),
        ("a.tsv", TABS + 'a 3\ty\t"n\n' + TABS + 'a 4"\ty\tn\n', ["a.tsv:5: a quote begins a cell here that goes on"]),
        ("a.tsv", TABS + 'a 3\t"y\ra 4\ty"\tn', ["a.tsv:5: a quote begins a cell", "as JSON lines"]),
        ("a.tsv", TABS + 'a 3\t"Hi," she said.\tn\n', ["a.tsv:5: invalid TSV: 'a tab' expected", 'becomes """Hi']),
        ("a.tsv", TABS + 'a 3\t"y\tn\na 4\ty\tn\n', ["a.tsv:5: invalid TSV: unexpected end of data"]),
        ("a.tsv", TABLE.replace(",", ";"), ["a.tsv:1: columns of a .tsv", "with ';' between", "ends in .csv"]),
        ("a.tsv.gz", TABLE, ["a.tsv.gz:1: columns of a .tsv", "3 names with ',' between"]),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", ["a.parquet: not a readable Parquet file: "]),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    message = refusal(put(tmp_path / name, content))
    assert message.startswith(f"{tmp_path}/{name}:")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_quoted_cell_of_a_table_of_tabs_holds_lines_or_tabs_and_the_remedy_for_quotes_works(tmp_path: Path) -> None:
    table = 'prompt\tchosen\n"a\nb"\t"c\td"\n\nq\t"""Hi,"" she said."\n'
    assert read(put(tmp_path / "a.tsv", table)) == [
        {"prompt": "a\nb", "chosen": "c\td"},
        {"prompt": "q", "chosen": '"Hi," she said.'},
    ]


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.data.lines.MAX_LINE_BYTES", 2**20)
    message = refusal(put(tmp_path / "a.jsonl.gz", gzip.compress(b" " * 2**24)))
    assert message == f"{tmp_path}/a.jsonl.gz:1: this line has more than 1 MiB. Split it."


def write_parquet(path: Path, table: Any) -> str:
    pq.write_table(table, path)
    return str(path)


def test_a_damaged_page_and_text_that_is_no_utf8_are_told_with_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "page.parquet", pa.table({"prompt": ["q"] * 1000}))
    content = bytearray(Path(path).read_bytes())
    for index in range(20, 60):
        content[index] ^= 0x5A
    assert refusal(put(tmp_path / "page.parquet", bytes(content))).startswith(f"{path}: not a readable Parquet file: ")
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    path = write_parquet(tmp_path / "utf8.parquet", pa.table({"prompt": broken}))
    assert refusal(path).startswith(f"{path}:rows 1 to 2: not readable: 'utf-8' codec can't decode byte 0xff")


def test_a_column_that_parquet_holds_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["good"]), pa.array(["evil"])], names=["chosen", "chosen"])
    path = write_parquet(tmp_path / "a.parquet", table)
    assert refusal(path) == f"{path}: the column 'chosen' is there twice. Rename or remove one."


PADDED = {
    "tools": [
        {"name": "add", "parameters": {"properties": {"a": {"type": "number"}, "b": {"type": "number"}}}},
        {"name": "greet", "parameters": {"properties": {"name": {"type": "string"}}}},
        {"name": "clock", "parameters": {"properties": {}}},
    ],
    "messages": [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
        },
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]},
    ],
    "list": ["a", None],
    "text": "x",
}


def test_keys_with_which_arrow_fills_up_objects_are_taken_out_at_every_depth(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert read(write_parquet(tmp_path / "a.parquet", pa.Table.from_pylist([PADDED]))) == [PADDED]
    datasets.Dataset.from_list([PADDED]).save_to_disk(str(tmp_path / "folder"))
    assert read(str(tmp_path / "folder")) == [PADDED]


ZONES = pa.map_(pa.string(), pa.struct([("city", pa.string()), ("hours", pa.int64())]))


def write_map(path: Path, *maps: Any) -> str:
    return write_parquet(path, pa.table({"arguments": pa.array([[{"zone": each}] for each in maps], nested(ZONES))}))


def nested(type: Any) -> Any:
    return pa.list_(pa.struct([("zone", type)]))


def test_an_arrow_map_is_an_object_at_every_depth(tmp_path: Path) -> None:
    path = write_map(
        tmp_path / "a.parquet",
        [("home", {"city": "Oslo", "hours": None}), ("work", None)],
        [],
        None,
    )
    assert [row["arguments"] for row in read(path)] == [
        [{"zone": {"home": {"city": "Oslo"}, "work": None}}],
        [{"zone": {}}],
        [{}],
    ]


def test_an_arrow_map_that_holds_a_key_twice_is_refused_with_its_row(tmp_path: Path) -> None:
    twice = [("home", {"hours": 1}), ("home", {"hours": 2})]
    path = write_map(tmp_path / "a.parquet", [("home", {"hours": 1})], twice)
    assert refusal(path) == f"{path}:row 2: a map holds the key 'home' twice. Rename or remove one."


def test_arrows_own_json_is_what_it_spells_with_its_authors_nulls(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"tools": [{"name": "f", "parameters": {"default": None, "a": [1]}}, {"name": "g", "parameters": "x"}]}]
    features = {"tools": datasets.List({"name": datasets.Value("string"), "parameters": datasets.Json()})}
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.save_to_disk(str(tmp_path / "folder"))
    assert read(str(tmp_path / "a.parquet")) == read(str(tmp_path / "folder")) == rows


def test_the_hub_is_not_asked_for_a_data_set_without_a_name() -> None:
    assert refusal("hub:").startswith("hub:: names no data set. Write hub:<owner>/<name>")


def test_nulls_that_an_author_wrote_in_json_stay(tmp_path: Path) -> None:
    row = {"tools": [{"name": "f", "parameters": {"default": None}}]}
    assert read(put(tmp_path / "a.jsonl", json.dumps(row))) == [row]


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_damaged_datasets_folder_is_told_with_its_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, "{")
    assert refusal(str(tmp_path)).startswith(f"{tmp_path}: not a readable folder of `datasets`: ")


def test_a_file_cut_inside_a_datasets_folder_is_told_with_its_path(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "folder"))
    (part,) = (tmp_path / "folder").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    assert refusal(str(tmp_path / "folder")).startswith(f"{tmp_path}/folder: not a readable folder of `datasets`: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", LINES)
    Path(path).chmod(0)
    assert refusal(path) == f"{path}: cannot be read (Permission denied)"


@pytest.mark.parametrize("call", ["open", "exists", "stat"])
def test_what_the_file_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = put(tmp_path / "a.jsonl", LINES)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, call, refuse)
    assert f"{path}: cannot be read (Permission denied)" in refusal(path)


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    assert "no path can be that long" in refusal(str(tmp_path / ("x" * 300 + ".jsonl")))


@pytest.mark.parametrize(
    ("name", "start"),
    [("rows.jsonl", "[\n"), ("rows.json", "{\n"), ("rows.jsonl", "\n"), ("rows.csv", 'prompt,chosen,rejected\n"')],
    ids=["list", "object", "blank", "table"],
)
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: str
) -> None:
    monkeypatch.setattr(lines, "PACKED_BYTES", 2**20)
    path = tmp_path / name
    with gzip.open(path, "wt") as file:
        file.write(start)
        file.writelines(" " * 99 + "\n" for _ in range(200_000))  # 20 MB
    with pytest.raises(UserError, match=r"rows\.\w+:\d+: the gzip file unpacks to more than 200 times its size"):
        list(iter_rows(str(path)))


def test_rows_that_repeat_themselves_are_no_gzip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PACKED_BYTES", 2**10)
    path = tmp_path / "rows.jsonl"
    with gzip.open(path, "wt") as file:
        file.writelines(f'{{"prompt": "{number} {"again " * 50}?"}}\n' for number in range(5_000))
    assert len(list(iter_rows(str(path)))) == 5_000


def test_a_link_that_leads_nowhere_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "blob")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(UserError, match=r"rows.jsonl is a link to \S+blob, where nothing can be found"):
        list(iter_rows(str(tmp_path / "rows.jsonl")))
    with pytest.raises(UserError, match=r"loop.jsonl is a link to loop.jsonl"):
        list(iter_rows(str(tmp_path / "loop.jsonl")))


def test_a_pipe_is_told_from_an_empty_file(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="no file, but a pipe or a device"):
        read(str(pipe))


def test_json_lines_have_another_ending_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read(str(path)) == [{"text": "a"}, {"text": "b"}]
