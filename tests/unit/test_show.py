"""What `prefopt show` shows of a row is what training gets of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefopt import show
from prefopt.config.load import load_config
from prefopt.config.schema import TrainConfig
from prefopt.data.anatomy import TokenSequence, dissect
from prefopt.data.loading import read_splits
from prefopt.data.shown_record import read_record
from prefopt.data.token_splits import load_tokenized
from prefopt.process.paths import shipped
from prefopt.reports.row import CUT, decode, pieces
from tests.conftest import SHARED_DATA

SPLIT_ANSWERS = [
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "second answer"},
]


def pair(number: int, chosen: Any = "yes", rejected: Any = "no") -> dict[str, Any]:
    """A preference pair of messages."""
    sides = {
        name: value if isinstance(value, list) else [{"role": "assistant", "content": value}]
        for name, value in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": [{"role": "user", "content": f"question {number}"}], **sides}


def example(number: int) -> dict[str, Any]:
    """A demonstration of two turns."""
    return {"messages": [{"role": "user", "content": f"question {number}"}, *SPLIT_ANSWERS]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shipped("assets/base_model"))


def settings(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> list[str]:
    """Overrides for data of these rows."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["data=files", f"data.train={file}", "data.held_out_fraction=0", "logger=none", *overrides]


def shown(config: TrainConfig, row: int, tokenizer: Any) -> dict[str, TokenSequence]:
    record, rows, _ = read_record(config.data, kind=config.algorithm.rows, row=row)
    anatomy = dissect(record, rows, tokenizer, config.data, loss_on=config.algorithm.trained_tokens)
    assert anatomy.fate == ""
    return {part.name: part for part in anatomy.sequences}


@pytest.mark.parametrize("max_length", [1024, 36])
def test_ids_and_masks_of_pairs_are_those_of_training(max_length, tmp_path, tokenizer):
    rows = [pair(0), pair(1, SPLIT_ANSWERS, "no"), pair(2, "a longer answer " * 10, "no")]
    config = load_config(settings(tmp_path, rows, f"data.max_length={max_length}", "data.on_long_completion=truncate"))
    trained = load_tokenized(read_splits(config.data, kind="preference", seed=0), tokenizer, config.data).train
    for index, row in enumerate(trained):
        parts = shown(config, index, tokenizer)
        assert {name: part.ids for name, part in parts.items()} == {
            name: row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")
        }
        for name in ("chosen", "rejected"):
            bounds = row[f"{name}_context"]
            context = {i for start, end in zip(bounds[::2], bounds[1::2], strict=True) for i in range(start, end)}
            assert [i not in context for i in range(len(row[f"{name}_ids"]))] == parts[name].trained
        assert not any(parts["prompt"].trained)
    assert bool(shown(config, 2, tokenizer)["chosen"].cut) is (max_length == 36)


@pytest.mark.parametrize("loss_on", ["completions", "all"])
def test_ids_and_masks_of_demonstrations_are_those_of_training(loss_on, tmp_path, tokenizer):
    overrides = settings(tmp_path, [example(0), example(1)], "algorithm=sft", f"algorithm.loss_on={loss_on}")
    config = load_config(overrides)
    splits = read_splits(config.data, kind="sft", seed=0)
    trained = load_tokenized(splits, tokenizer, config.data, loss_on=config.algorithm.trained_tokens).train
    for index, row in enumerate(trained):
        part = shown(config, index, tokenizer)["example"]
        assert part.ids == row["input_ids"]
        assert part.trained == [label != -100 for label in row["labels"]]


def test_what_is_cut_follows_what_the_model_gets(tmp_path, tokenizer):
    rows = [pair(0, "a longer answer " * 10, "no")]
    whole = shown(load_config(settings(tmp_path, rows)), 0, tokenizer)["chosen"]
    short = load_config(settings(tmp_path, rows, "data.max_length=30", "data.on_long_completion=truncate"))
    part = shown(short, 0, tokenizer)["chosen"]
    assert part.ids + part.cut == whole.ids
    assert len(part.trained) == len(part.ids) == 30 - len(shown(short, 0, tokenizer)["prompt"].ids)
    assert [piece.role for piece in pieces(tokenizer, part)].count(CUT) == len(part.cut)


@pytest.mark.parametrize(
    ("row", "overrides", "fate"),
    [
        (pair(0, "same", "same"), (), "chosen and rejected are equal (data.on_identical=refuse)"),
        (pair(0, "yes", " "), ("data.on_empty=skip",), "a completion is empty (data.on_empty=skip)"),
        (pair(0), ("data.max_length=8",), "the prompt alone fills data.max_length=8 (data.on_long_prompt=refuse)"),
        (
            pair(0, "long " * 99),
            ("data.max_length=50", "data.on_long_completion=refuse"),
            "longer than data.max_length=50 (data.on_long_completion=refuse)",
        ),
        (
            pair(0, "very long " * 99 + "a", "very long " * 99 + "b"),
            ("data.max_length=50", "data.on_long_completion=truncate"),
            "the tokens of chosen and rejected are equal up to data.max_length=50",
        ),
    ],
)
def test_a_row_that_training_leaves_out_is_shown_with_the_reason(row, overrides, fate, tmp_path, capsys):
    show.main([*settings(tmp_path, [row], *overrides), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == fate
    assert found["is_refused"] == fate.endswith("=refuse)")
    assert [part["name"] for part in found["sequences"]] == ["prompt", "chosen", "rejected"]
    assert found["sequences"][1]["ids"] or found["sequences"][1]["cut_ids"]


def test_rows_count_from_0_in_the_order_of_the_file(tmp_path, capsys, fails):
    overrides = settings(tmp_path, [pair(number) for number in range(5)])
    show.main([*overrides, "--row", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == f"{tmp_path / 'rows.jsonl'}:4"
    assert "question 3" in found["sequences"][0]["text"]
    assert found["left_out"] is None
    for row in ("5", "-1"):
        assert f"--row {row}: data.train has 5 rows" in fails(show.main, [*overrides, f"--row={row}"])


def test_a_row_is_found_by_the_place_that_the_audit_names(tmp_path, capsys, fails):
    labelled = [
        {"prompt": f"question {n}", "completion": text, "label": text == "a"} for n in range(2) for text in "ab"
    ]
    settings(tmp_path, labelled[::-1])
    file = str(tmp_path / "rows.jsonl")
    for place in (f"{file}:4+3", f"{file}:4"):
        show.main([file, "--row", place, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["source"], "question 0" in found["sequences"][0]["text"]) == (f"{file}:4+3", True)
    assert f"--row {file}:5: no row of data.train. Give" in fails(show.main, [file, "--row", f"{file}:5"])
    assert f"such as {file}:1." in fails(show.main, [file, "--row", "four"])


def test_a_table_is_shown_by_its_name_and_says_whose_tokens_these_are(tmp_path, capsys):
    table, page = tmp_path / "rows.csv", tmp_path / "row.html"
    table.write_text("prompt,chosen,rejected\nHi?,yes,no\nWell?,sure,no\n", encoding="utf-8")
    show.main([str(table), "--row", f"{table}:row 2", "--html", str(page)])
    printed = capsys.readouterr().out
    assert "⟦sure" in printed
    assert "as prefopt:assets/base_model gets it in dpo" in printed.splitlines()
    assert "As prefopt:assets/base_model gets it in dpo." in page.read_text(encoding="utf-8")


def test_a_row_of_a_table_is_found_with_and_without_the_word_row(tmp_path, capsys, fails):
    table = tmp_path / "rows.csv"
    table.write_text("prompt,chosen,rejected\nHi?,yes,no\nWell?,sure,no\n", encoding="utf-8")
    sources = []
    for place in (f"{table}:2", f"{table}:row 2", "1"):
        show.main([str(table), "--row", place, "--json"])
        sources.append(json.loads(capsys.readouterr().out)["source"])
    assert sources == [f"{table}:row 2"] * 3
    for place in (f"{table}:3", f"{table}:row 3"):
        assert f"--row {place}: no row of data.train" in fails(show.main, [str(table), "--row", place])


def test_a_good_row_is_shown_beside_bad_ones_and_says_how_many_these_are(tmp_path, capsys, fails):
    rows = [{"prompt": "Hi?"}, pair(1), {**pair(2), "chosen": 5}, pair(3)]
    overrides = settings(tmp_path, rows)
    file = tmp_path / "rows.jsonl"
    for row, line in (("1", 2), (f"{file}:4", 4)):
        show.main([*overrides, "--row", row])
        place, *others = capsys.readouterr().out.splitlines()
        assert place == f"{file}:{line}"
        said = f"data.train: 2 rows cannot be used, and training refuses them, such as {file}:1"
        assert said in others
    for row in (0, 2):
        message = fails(show.main, [*overrides, "--row", str(row)])
        assert f"{file}:1" in message
        assert f"{file}:3" in message
    assert "cannot be used" not in _printed(settings(tmp_path, [pair(0)]), capsys)


def test_a_good_row_is_shown_although_skipping_would_leave_out_most(tmp_path, capsys):
    overrides = settings(tmp_path, [{"prompt": "Hi?"}, {"prompt": "Ho?"}, pair(2)], "data.on_bad=skip")
    show.main([*overrides, "--row", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["source"].endswith(":3")


@pytest.mark.parametrize(
    ("decided", "said"), [("refuse", "training refuses this row"), ("skip", "left out of training")]
)
def test_a_row_without_an_answer_is_refused_or_left_out_and_counted_beside_others(decided, said, tmp_path, capsys):
    overrides = settings(tmp_path, [pair(0), pair(1, "", "no"), pair(2, "a", "a")], f"data.on_bad={decided}")
    assert f"{said}: a completion is empty (data.on_empty={decided})" in _printed([*overrides, "--row", "1"], capsys)
    beside = _printed([*overrides, "--row", "0"], capsys)
    assert ("data.train: 2 rows cannot be used, and training refuses them" in beside) == (decided == "refuse")


def test_a_column_that_is_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("text,category\nWhere is my card?,card_arrival\nMy card is late.,card_arrival\n")
    plain = _printed([str(path), "algorithm=sft"], capsys)
    assert "data.train: column 'category' has a value in 2 rows and is ignored" in plain
    mapped = _printed([str(path), "algorithm=sft", "data.columns={prompt: text, completion: category}"], capsys)
    assert "is ignored" not in mapped


def _printed(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    show.main(overrides)
    return capsys.readouterr().out


def test_the_row_is_named_by_its_number_and_its_line_with_what_else_it_makes(tmp_path, capsys):
    rated = [{"prompt": f"question {n}", "responses": ["a", "b", "c"], "scores": [3, 2, 1]} for n in range(2)]
    overrides = settings(tmp_path, rated)
    show.main([*overrides, "--row", "1", "data.pairs=all", "data.columns={system: nosuch}"])
    place, number, pairs, absent, *_ = capsys.readouterr().out.splitlines()
    assert place == f"{tmp_path / 'rows.jsonl'}:2 pair 1"
    assert number == "row 1 of data.train, counted from 0 over all its files"
    assert pairs == "the row makes 3 pairs (data.pairs=all); this is the first"
    assert absent == "data.train: no row has a column 'nosuch' to be read as 'system' (data.columns)"
    show.main([*overrides, "--row", "1"])
    assert "pairs" not in capsys.readouterr().out


def test_a_row_that_is_left_out_is_named_by_its_line(tmp_path, fails):
    overrides = [*settings(tmp_path, [pair(0), pair(1), {"prompt": "Hi?"}]), "data.on_bad=skip"]
    message = fails(show.main, [*overrides, "--row", "2"])
    assert f"--row 2: this row cannot be read (data.on_bad=skip), {tmp_path / 'rows.jsonl'}:3, so" in message
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n" + json.dumps(pair(2)) + "\n{broken\n")
    for row, line in ((3, 4), (5, 6)):
        assert f"{tmp_path / 'rows.jsonl'}:{line}, so" in fails(show.main, [*overrides, "--row", str(row)])


def test_ties_count_among_the_rows_and_are_not_shown(tmp_path, capsys, fails):
    sides = {"response_a": "yes", "response_b": "no"}
    rows = [{"prompt": f"question {number}", **sides, "winner": won} for number, won in enumerate(("a", "tie", "b"))]
    overrides = settings(tmp_path, rows)
    show.main([*overrides, "--row", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["source"].endswith(":3")
    assert found["sequences"][1]["text"].startswith("no")
    assert f"--row 1: this row is a tie, {tmp_path / 'rows.jsonl'}:2, so training" in fails(
        show.main, [*overrides, "--row", "1"]
    )
    config = load_config(overrides)
    notes = read_splits(config.data, kind="preference", seed=0).notes
    assert (notes.read["train"].num_rows, notes.num_records["train"]) == (3, 2)
    assert "train: 1 row skipped: a tie, so neither answer is preferred" in notes.lines()


def test_without_colours_marks_surround_what_is_trained(tmp_path, capsys):
    show.main(settings(tmp_path, [pair(0, SPLIT_ANSWERS, "no")]))
    lines = capsys.readouterr().out.splitlines()
    assert "⟦first answer<|im_end|>" in lines
    assert "and then?<|im_end|>" in lines
    assert "⟦second answer<|im_end|>" in lines
    assert any(line.startswith("chosen  ") and line.endswith(" trained") for line in lines)


def test_the_page_has_every_token_once_and_escapes_it(tmp_path, capsys):
    page = tmp_path / "row.html"
    show.main([*settings(tmp_path, [pair(0, "<script>alert(1)</script>\x1b[31m", "no")]), "--html", str(page)])
    html = page.read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "\x1b" not in html + capsys.readouterr().out
    show.main([*settings(tmp_path, [pair(0, "a < b", "no")]), "--html", str(page), "--json"])
    parts = json.loads(capsys.readouterr().out)["sequences"]
    assert page.read_text(encoding="utf-8").count('title="') == sum(len(part["ids"]) for part in parts)


def test_a_page_that_cannot_be_written_is_named(tmp_path, fails):
    absent = tmp_path / "absent" / "row.html"
    assert f"{absent.parent}" in fails(show.main, [*settings(tmp_path, [pair(0)]), "--html", str(absent)])


@pytest.mark.parametrize("text", ["Grüße, ¿qué? 漢字 🙂🙂 end", "  two blanks\n\nand lines ", "e\u0301\u200d"])
def test_pieces_of_text_join_to_the_whole(text, tokenizer):
    tokenizers = [tokenizer]
    if (SHARED_DATA / "stories260K_hf").exists():
        tokenizers.append(AutoTokenizer.from_pretrained(SHARED_DATA / "stories260K_hf"))  # SentencePiece's blanks
    for each in tokenizers:
        ids = each(text)["input_ids"]
        found = pieces(each, TokenSequence("example", ids, [True] * len(ids), []))
        assert "".join(piece.text for piece in found) == decode(each, ids)
        assert [token for piece in found for token in piece.ids] == ids
        assert len(found) > 1


@pytest.mark.parametrize(("algorithm", "is_told"), [("dpo", True), ("sft", False)])
def test_the_legend_says_what_becomes_of_the_rejected_answer(
    algorithm: str, is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Hi?", "chosen": "Hi!", "rejected": "No."} if is_told else {"prompt": "Hi?", "completion": "Hi!"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    show.main(["data=files", f"data.train={path}", f"algorithm={algorithm}", "--row", "0"])
    assert (
        "the chosen answer is to become likelier than the rejected one" in " ".join(capsys.readouterr().out.split())
    ) == is_told
