"""prefopt convert as it is typed: a file of another system's rows, or every reason why there is none."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import DataFormat
from prefopt.convert import main as convert
from prefopt.data.reading import read_records
from prefopt.process.errors import UserError

HAVE_ROLES = ("openai", "azure", "together", "fireworks", "llamafactory", "swift")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pair(number: int, **more: Any) -> dict[str, Any]:
    answers = {"chosen": [turn("assistant", "Yes.")], "rejected": [turn("assistant", "No.")]}
    return {"prompt": [turn("user", f"Question {number}?")], **answers, **more}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pairs of messages, with a column that no system knows."""
    return write(tmp_path / "pairs.jsonl", *(pair(number, note="x") for number in range(12)))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, kind: Any = "preference") -> list[Any]:
    return [*read_records(str(path), format=DataFormat.auto, kind=kind).records]


@pytest.mark.parametrize(
    "system", ["trl", "openai", "azure", "together", "fireworks", "gemini", "nova", "llamafactory", "swift", "kto"]
)
def test_a_file_for_each_system_holds_the_same_pairs(pairs: Path, tmp_path: Path, capsys: Any, system: str) -> None:
    output = tmp_path / "out.jsonl"
    convert([str(pairs), "--to", system, "--output", str(output)])
    assert [(r.prompt, r.chosen, r.rejected) for r in read(output)] == [
        (r.prompt, r.chosen, r.rejected) for r in read(pairs)
    ]
    shown = capsys.readouterr().out
    rows = 24 if system == "kto" else 12
    assert f"{output}: {rows} rows for " in shown
    assert f"of 12 pairs; {output.stat().st_size:,} bytes" in shown
    assert "column 'note' has a value in 12 rows and is ignored" in shown
    assert ("rules: kept by every row: only these roles" in shown) == (system in HAVE_ROLES)
    assert ("new jobs end on 2027-01-06" in shown) == (system == "openai")
    assert "note" not in output.read_text()


def test_a_mapped_column_that_no_row_has_is_told(pairs: Path, tmp_path: Path, capsys: Any) -> None:
    convert([str(pairs), "--to", "trl", "--output", str(tmp_path / "out.jsonl"), "data.columns={system: nosuch}"])
    assert "data: no row has a column 'nosuch' to be read as 'system' (data.columns)" in capsys.readouterr().out


@pytest.mark.parametrize("scores", [{"score_chosen": 8, "score_rejected": 5.5}, {"margin": 2.5}])
def test_scores_are_kept_where_rows_have_a_place_for_them_and_else_counted(
    tmp_path: Path, capsys: Any, scores: dict[str, float]
) -> None:
    path = write(tmp_path / "scored.jsonl", pair(0, **scores), pair(1), pair(2, **scores))
    convert([str(path), "--to", "trl", "--output", str(tmp_path / "trl.jsonl")])
    assert [record.margin for record in read(tmp_path / "trl.jsonl")] == [2.5, None, 2.5]
    assert "the scores of 2 pairs are written as their difference, in the column 'margin'" in capsys.readouterr().out
    convert([str(path), "--to", "swift", "--output", str(tmp_path / "swift.jsonl")])
    assert "the scores of 2 pairs are left out: rows for ms-swift have no place for them" in capsys.readouterr().out


def test_a_mixture_is_converted_and_its_files_are_not_replaced(pairs: Path, tmp_path: Path, capsys: Any) -> None:
    mixture = f"data.train=[{{path: {pairs}, max_rows: 2}}, {{path: {write(tmp_path / 'b.jsonl', pair(99))}}}]"
    output = tmp_path / "out.jsonl"
    convert([mixture, "--to", "trl", "--output", str(output)])
    assert len(read(output)) == 3
    assert "part 'pairs': 2 rows, 2 of 12 kept (max_rows)" in capsys.readouterr().out
    for data in (mixture, str(tmp_path / "*.jsonl")):
        with pytest.raises(UserError, match="this is a file that is read"):
            convert([data, "--to", "trl", "--output", str(pairs), "--overwrite"])


def test_rows_that_would_lose_something_are_all_named_with_their_reason_and_nothing_is_written(
    pairs: Path, tmp_path: Path
) -> None:
    many = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    bad = [pair(12, tools=[{"type": "function", "function": {"name": "f"}}]), *(pair(0, prompt=many) for _ in "12345")]
    path = write(tmp_path / "bad.jsonl", *(json.loads(line) for line in pairs.read_text().splitlines()), *bad)
    with pytest.raises(UserError) as refusal:
        convert([str(path), "--to", "fireworks", "--output", str(tmp_path / "out.jsonl")])
    first, *reasons = str(refusal.value).splitlines()
    assert first == "nothing was written for Fireworks:"
    places = f"{path}:14, {path}:15, {path}:16, ..."
    assert reasons == [
        f"  5 rows ({places}): Fireworks asks: one question of the user. Found 3 messages before the answer. Drop the "
        "row.",
        f"  {path}:13: Fireworks asks: no tools. Found tools, or calls of them. Drop the row: without them, its "
        "answers say something else.",
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.jsonl", "pairs.jsonl"]


def test_too_few_rows_are_refused_with_the_source_of_the_number(tmp_path: Path) -> None:
    path = write(tmp_path / "few.jsonl", *map(pair, range(9)))
    with pytest.raises(UserError, match=r"9 rows, and at least 10 are asked for \(OpenAI guide to fine-tuning, 2026-"):
        convert([str(path), "--to", "openai", "--output", str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()


def test_plain_text_is_written_as_chats_by_the_remedy_that_its_refusal_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": f"p{n}", "chosen": "y", "rejected": "n"} for n in range(12)))
    command = [str(path), "--to", "together", "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(UserError, match=r"12 rows .*Set data.as_chat=true"):
        convert(command)
    convert([*command, "data.as_chat=true"])
    assert read(tmp_path / "out.jsonl")[0].prompt == [turn("user", "p0")]
    convert([str(path), "--to", "kto", "--output", str(tmp_path / "kto.jsonl")])
    assert read(tmp_path / "kto.jsonl")[0].prompt == "p0"


def test_demonstrations_are_converted_and_kinds_of_rows_are_not_mixed_up(tmp_path: Path, pairs: Path) -> None:
    chats = [{"messages": [turn("user", f"q{n}"), turn("assistant", "a")]} for n in range(40)]
    path = write(tmp_path / "chats.jsonl", *chats)
    output = tmp_path / "out.jsonl"
    convert([str(path), "--to", "anthropic", "--output", str(output), "algorithm=sft"])
    assert [record.messages for record in read(output, "sft")] == [chat["messages"] for chat in chats]
    with pytest.raises(UserError, match=r"takes demonstrations, not pairs. Set algorithm=sft"):
        convert([str(pairs), "--to", "anthropic", "--output", str(output), "--overwrite"])
    with pytest.raises(UserError, match=r"takes pairs, not demonstrations. Set algorithm=dpo"):
        convert([str(path), "--to", "kto", "--output", str(output), "--overwrite", "algorithm=sft"])


def test_columns_of_a_table_are_mapped_as_for_training(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("question;good;bad\n" + "".join(f"q{n};y;n\n" for n in range(12)))
    mapping = "data.columns={prompt: question, chosen: good, rejected: bad}"
    convert([str(table), "--to", "trl", "--output", str(tmp_path / "out.jsonl"), mapping])
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0]) == {
        "prompt": "q0",
        "chosen": "y",
        "rejected": "n",
    }


def test_a_file_that_exists_is_replaced_only_when_asked_and_never_by_half(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine\n")
    command = [str(pairs), "--to", "swift", "--output", str(output)]
    with pytest.raises(UserError, match=r"exists already. Give another name, or add --overwrite"):
        convert(command)
    bad = write(tmp_path / "bad.jsonl", pair(0), pair(1, prompt=[{**turn("user", "a"), "mood": "x"}]))
    with pytest.raises(UserError, match="'mood' of 'message 0'"):
        convert([str(bad), *command[1:], "--overwrite"])
    assert output.read_text() == "mine\n"
    convert([*command, "--overwrite"])
    assert len(read(output)) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pairs.jsonl --to togther --output out.jsonl", "--to togther: no such system. Did you mean together?"),
        ("pairs.jsonl --to trl --output out.csv", "the name must end in .jsonl"),
        ("pairs.jsonl --to trl --output no/out.jsonl", "no such folder"),
        ("pairs.jsonl --to trl --output pairs.jsonl --overwrite", "this is a file that is read"),
        ("absent.jsonl --to trl --output out.jsonl", "absent.jsonl: no such file"),
        ("pairs.jsonl --to trl --output out.jsonl data.held_out=pairs.jsonl", "data.held_out: one file is written"),
        ("pairs.jsonl --to trl --output out.jsonl data.colums=x", "no such setting. Did you mean data.columns?"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        convert(shlex.split(arguments))
    assert message in str(refusal.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_a_provider_of_ones_own_is_a_file(pairs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine" / "provider").mkdir(parents=True)
    own = tmp_path / "mine" / "provider" / "ours.yaml"
    limit = "{name: max_tokens, value: 100, known: docs, source: our wiki, date: 2026-11}"
    own.write_text(f"# Our own service.\ntitle: Ours\nlayout: openai\nlimits:\n  - {limit}\n")
    command = [
        str(pairs),
        "--to",
        "ours",
        "--output",
        str(tmp_path / "out.jsonl"),
        "--config-dir",
        str(own.parents[1]),
    ]
    convert(command)
    assert "limit: not checked: most tokens of a row: 100, of the provider's tokenizer" in capsys.readouterr().out
    own.write_text("title: Ours\nlayout: opnai\n")
    with pytest.raises(UserError, match=r"ours.yaml: .*opnai"):
        convert([*command, "--overwrite"])
