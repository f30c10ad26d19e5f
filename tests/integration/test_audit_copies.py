"""The cleaned copy of `prefopt audit --fix`: of files whose rows are no pairs alone, and never an empty one."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.audit import main as audit
from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.process.errors import UserError
from tests.integration.test_audit import rows, write


def mend(path: Path, *settings: str) -> list[str]:
    """The lines of the copy of a file."""
    output = path.parent / "mended"
    audit([str(path), "data/gate=off", "data.held_out_fraction=0", *settings, "--output", str(output), "--fix"])
    return (output / path.name).read_text(encoding="utf-8").splitlines()


def test_both_rows_of_a_joined_pair_are_dropped(tmp_path: Path) -> None:
    answers = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows(20)
        for side in ("chosen", "rejected")
    ]
    empty = [{**answer, "prompt": "What is empty?"} for answer in answers[:2]]
    empty[0]["completion"] = " "
    path = write(tmp_path / "kto.jsonl", [*answers[:6], *empty, *answers[6:]])
    kept = mend(path)
    assert [json.loads(line) for line in kept] == answers


def test_a_row_of_several_pairs_is_dropped_if_all_of_them_are_found(tmp_path: Path, capsys: Any) -> None:
    rated = [
        {
            "prompt": row["prompt"],
            "responses": [row["chosen"], row["rejected"], f"{row['prompt']} No."],
            "ratings": [3, 2, 1],
        }
        for row in rows(20)
    ]
    whole = {"prompt": "What is the same?", "responses": ["So it is."] * 3, "ratings": [3, 2, 1]}
    partly = {
        "prompt": "What is half?",
        "responses": ["So it is.", "So it is.", "It is not that."],
        "ratings": [3, 2, 1],
    }
    path = write(tmp_path / "rated.jsonl", [*rated, whole, partly])
    kept = mend(path, "data.pairs=all")
    assert [json.loads(line) for line in kept] == [*rated, partly]
    assert "Not dropped: 1 row of identical" in " ".join(capsys.readouterr().out.split())


def test_the_copy_of_a_table_keeps_its_names_of_columns_and_says_so(tmp_path: Path, capsys: Any) -> None:
    path, output = tmp_path / "table.csv", tmp_path / "mended"
    cells = [f"{row['prompt']},{row['chosen']},{row['rejected']}" for row in rows()]
    path.write_text("\n".join(["question,good,bad", *cells, cells[0]]), encoding="utf-8")
    columns = "data.columns={prompt: question, chosen: good, rejected: bad}"
    audit([str(path), columns, "data.held_out_fraction=0", "--output", str(output), "--fix"])
    assert "read the copy with the same data.columns" in " ".join(capsys.readouterr().out.split())
    copy = output / "table.jsonl"
    assert [*json.loads(copy.read_text(encoding="utf-8").splitlines()[0])] == ["question", "good", "bad"]
    audit([str(copy), columns, "data.held_out_fraction=0", "--output", str(output / "again"), "--fix"])
    assert (output / "again" / "table.jsonl").read_bytes() == copy.read_bytes()


def test_no_empty_copy_is_written(tmp_path: Path) -> None:
    first, again = write(tmp_path / "first.jsonl", rows()), write(tmp_path / "again.jsonl", rows())
    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"no row would be left in again\.jsonl.*duplicate 40"):
        audit([str(first), str(again), "data.held_out_fraction=0", "--output", str(output), "--fix"])
    assert not list(output.glob("*.jsonl"))


def test_a_file_named_twice_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "rows.jsonl", rows())
    (tmp_path / "link.jsonl").symlink_to(path)
    for names in (["rows.jsonl", "rows.jsonl"], ["rows.jsonl", "./r*.jsonl"], [str(path), "link.jsonl"], ["*.jsonl"]):
        with pytest.raises(UserError, match="is named twice"):
            audit(names)
    parts: Any = [{"path": "rows.jsonl", "name": "one"}, {"path": "link.jsonl", "name": "other"}]
    with pytest.raises(UserError, match=r"weight: ?2"):
        read_splits(DataConfig(train=parts), kind="preference", seed=0)


def test_the_log_of_changes_has_rows_as_they_were(tmp_path: Path) -> None:
    half = {**rows()[1], "chosen": "\ud83d.\u0007"}
    twice = '{"id": 1, ' + json.dumps({**rows()[0], "rejected": rows()[0]["chosen"]})[1:]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, rows()), json.dumps(half), twice]))
    mend(path)
    changes = (tmp_path / "mended" / "changes.jsonl").read_text(encoding="utf-8").splitlines()
    before = {each["source"].rpartition(":")[2]: each["before"] for each in map(json.loads, reversed(changes))}
    assert before == {"41": half, "42": twice}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--near"], "Add --fix"),
        (["--output", "rows.jsonl"], "is a file"),
        (["--output", "rows.jsonl/out"], "is a file"),
        (["--output", ".", "--fix"], "never changed"),
    ],
)
def test_options_that_cannot_work_are_refused_before_rows_are_read(
    options: list[str], said: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", rows())
    monkeypatch.setattr("prefopt.audit.read_material", None)
    with pytest.raises(UserError, match=said):
        audit(["rows.jsonl", *options])


def test_rows_that_max_rows_leaves_out_are_counted(tmp_path: Path) -> None:
    config = DataConfig(train=str(write(tmp_path / "rows.jsonl", rows())), max_rows=9, held_out_fraction=0)
    assert "train: 31 rows left out by data.max_rows" in read_splits(config, kind="preference", seed=0).notes.lines()


def test_a_row_with_a_deeply_nested_column_is_copied_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", rows(20))
    lines = path.read_text().splitlines()
    lines[3] = f'{{"deep": {"[" * 900}{"]" * 900}, {lines[3][1:]}'
    path.write_text("\n".join(lines) + "\n")
    assert mend(path) == lines
