"""Pairs of rows that are none: several scored answers, single answers with a label, and margins of scores."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import PairChoice
from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig
from prefopt.data.defects import record_key
from prefopt.data.loading import read_splits
from prefopt.data.pairing import find_margin, rows_of
from prefopt.data.shown_record import read_record
from prefopt.process.errors import UserError


def read(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> Any:
    """The splits of a file with these rows, nothing held out."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(path), held_out_fraction=0, **settings)
    return read_splits(config, kind="preference", seed=0)


def kto(prompt: str, answer: str, label: object, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "label": label, **more}


def sides(splits: Any) -> list[tuple[str, str]]:
    return [(record.chosen, record.rejected) for record in splits.train]


def test_labelled_answers_of_one_prompt_are_joined_in_file_order_each_once(tmp_path: Path) -> None:
    splits = read(
        tmp_path,
        kto("p", "bad 1", False),
        kto("p", "bad 2", False),
        kto("q", "alone", True),
        kto("p", "good 1", True),
        kto("p", "good 2", True),
        kto("p", "good 3", True),
    )
    assert sides(splits) == [("good 1", "bad 1"), ("good 2", "bad 2")]
    assert [record.source.rpartition("/")[2] for record in splits.train] == ["a.jsonl:4+1", "a.jsonl:5+2"]
    notes = splits.notes.read["train"]
    assert (notes.num_rows, notes.num_joined, notes.num_waiting_skipped) == (6, 2, 2)
    assert any("2 rows skipped: an answer with a label" in line for line in splits.notes.lines())


def test_answers_under_different_system_prompts_or_tools_are_no_pair(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "p"}]
    answer = [{"role": "assistant", "content": "a"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [kto(question, answer, True, tools=tools), kto(question, answer, False)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no rows are left.*2 rows skipped: an answer with a label"):
        read(tmp_path, *rows)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        *((True, False), (1, 0), ("desirable", "undesirable"), ("true", "false"), ("+1", "-1"), ("Up", "Down")),
        *(("thumbs_up", "thumbs_down"), ("Thumbs up", "Thumbs down"), ("thumbsup", "thumbs-down"), ("👍🏽", "👎")),
        *(("upvote", "downvote"), ("liked", "disliked"), ("like", "dislike"), ("accept", "reject")),
    ],
)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_labels_are_read_in_every_notation(tmp_path: Path, good: object, bad: object, column: str) -> None:
    rows = [{"prompt": "p", "completion": "y", column: good}, {"prompt": "p", "completion": "n", column: bad}]
    assert sides(read(tmp_path, *rows)) == [("y", "n")]


def test_a_label_in_unknown_words_is_named_and_never_trained_as_a_demonstration(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, kto("p", "y", "superb"), kto("p", "n", "awful"))
    assert "If 'label' (text (\"superb\")) says whether the answer is wanted, write true or false" in str(raised.value)
    assert "sft" not in str(raised.value)


def test_conversations_and_alpaca_rows_with_labels_are_joined(tmp_path: Path) -> None:
    def talk(answer: str, label: bool) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": answer}],
            "label": label,
        }

    (record,) = read(tmp_path, talk("y", True), talk("n", False)).train
    assert (record.prompt[0]["content"], record.chosen[0]["content"], record.rejected[0]["content"]) == ("p", "y", "n")
    alpaca = {"instruction": "p"}
    rows = [{**alpaca, "output": "n", "kto_tag": False}, {**alpaca, "output": "y", "kto_tag": True}]
    assert sides(read(tmp_path, *rows)) == [("y", "n")]


def test_a_row_that_completes_no_pair_cannot_be_shown_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    read(tmp_path, kto("p", "y", True), kto("p", "n", False))
    config = DataConfig(train=str(tmp_path / "a.jsonl"))
    assert read_record(config, kind="preference", row=1)[0].chosen == "y"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="--row 0: no pair is complete with this row"):
        read_record(config, kind="preference", row=0)


RATED = {"prompt": "p", "responses": ["b", "d", "a", "c"], "scores": [3, 1, 4, 2]}
TIED = {"prompt": "p", "responses": ["b", "d", "a", "c"], "scores": [4, 1, 4, 4]}


def test_all_makes_a_pair_of_each_two_answers_of_which_one_is_better(tmp_path: Path) -> None:
    splits = read(tmp_path, RATED, pairs=PairChoice.all)
    assert sorted(sides(splits)) == [(x, y) for x in "abcd" for y in "abcd" if x < y]
    places = [record.source for record in splits.train]
    assert len(set(places)) == 6, "a place names one record"
    assert places[0].endswith("a.jsonl:1 pair 1")
    ties = read(tmp_path, {**RATED, "scores": [2, 2, 2, 1]}, pairs=PairChoice.all)
    assert sorted(sides(ties)) == [("a", "c"), ("b", "c"), ("d", "c")]


def test_a_random_worse_answer_depends_neither_on_the_order_of_answers_nor_of_rows(tmp_path: Path) -> None:
    rows = [{**RATED, "prompt": f"p{number}"} for number in range(40)]
    chosen = {record.prompt: record.rejected for record in read(tmp_path, *rows, pairs=PairChoice.best_random).train}
    assert set(chosen.values()) == {"b", "c", "d"}
    shuffled = []
    for row in random.Random(0).sample(rows, len(rows)):
        order = random.Random(row["prompt"]).sample(range(4), 4)
        shuffled.append({**row, **{name: [row[name][at] for at in order] for name in ("responses", "scores")}})
    again = read(tmp_path, *shuffled, pairs=PairChoice.best_random).train
    assert {record.prompt: record.rejected for record in again} == chosen
    assert {record.chosen for record in again} == {"a"}


def test_of_several_best_answers_a_random_one_is_chosen_in_whatever_order_they_stand(tmp_path: Path) -> None:
    rows = [{**TIED, "prompt": f"p{number}"} for number in range(30)]
    back = [{**row, **{name: row[name][::-1] for name in ("responses", "scores")}} for row in rows]
    first, again = (sides(read(tmp_path, *each, pairs=PairChoice.best_random)) for each in (rows, back))
    assert first == again
    assert {chosen for chosen, _ in first} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, [("a", "d")]),
        (PairChoice.all, [("a", "c"), ("a", "d"), ("b", "d")]),
    ],
)
def test_pairs_below_the_least_margin_are_left_out_and_counted(tmp_path: Path, choice: Any, expected: Any) -> None:
    splits = read(tmp_path, RATED, pairs=choice, min_margin=2)
    assert sorted(sides(splits)) == expected
    assert splits.notes.read["train"].num_close_skipped == (3 if choice else 0)


def test_a_random_answer_keeps_the_least_margin(tmp_path: Path) -> None:
    rows = [{**RATED, "prompt": f"p{number}"} for number in range(20)]
    splits = read(tmp_path, *rows, pairs=PairChoice.best_random, min_margin=2)
    assert {record.rejected for record in splits.train} == {"c", "d"}
    assert len(splits.train) == 20


PAIR = {"prompt": "p", "chosen": "y", "rejected": "n"}


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"chosen_score": "8.5", "rejected_score": "6"}, 2.5),
        ({"chosen-rating": 2, "rejected-rating": 5.0}, -3),
        ({"margin": 1.5, "score_chosen": 1, "score_rejected": 0}, 1.5),
        ({"metadata": {"score_chosen": 8, "score_rejected": 7.5}}, 0.5),
        ({"score_chosen": 8.5}, None),
        ({"score_chosen": None, "score_rejected": 6}, None),
        ({"score_chosen": "high", "score_rejected": 6}, None),
        ({"score_chosen": float("nan"), "score_rejected": 6}, None),
        ({}, None),
    ],
)
def test_the_margin_of_a_pair_is_the_difference_of_its_scores(columns: dict[str, Any], margin: float | None) -> None:
    assert find_margin({**PAIR, **columns})[0] == margin


@pytest.mark.parametrize(
    ("columns", "ignored"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, []),
        ({"margin": 1}, []),
        ({"score_chosen": 8.5}, ["score_chosen"]),
        ({"score_chosen": "high", "score_rejected": 6}, ["score_chosen", "score_rejected"]),
        ({"margin": 1.5, "score_chosen": 1, "score_rejected": 0}, ["score_chosen", "score_rejected"]),
        ({"margin": "big", "chosen_score": 1, "rejected_score": 0}, ["margin"]),
    ],
)
def test_scores_of_which_no_margin_is_made_are_told(
    tmp_path: Path, columns: dict[str, Any], ignored: list[str]
) -> None:
    assert [*read(tmp_path, {**PAIR, **columns}).notes.read["train"].ignored_columns] == ignored
    ranked = read(tmp_path, {**RATED, **columns}).notes.read["train"]
    assert [*ranked.ignored_columns] == sorted(columns), "the answers' own scores make the margin"


def test_a_margin_is_kept_and_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    (scored,) = read(tmp_path, {**PAIR, "score_chosen": 3, "score_rejected": 1}).train
    (plain,) = read(tmp_path, PAIR).train
    assert (scored.margin, plain.margin) == (2, None)
    assert record_key(scored) == record_key(plain)


@pytest.mark.parametrize(
    ("columns", "margin", "told"),
    [
        ({"metadata": {"score_chosen": 8, "score_rejected": 7.5, "genre": "x"}}, 0.5, True),
        ({"metadata": {"margin": 2}}, 2, True),
        ({"metadata": {"genre": "x"}}, None, False),
        ({"metadata": {"score_chosen": 8, "score_rejected": 7}, "margin": 3}, 3, False),
    ],
)
def test_metadata_are_told_as_ignored_only_where_no_margin_is_read_from_them(
    tmp_path: Path, columns: dict[str, Any], margin: float | None, told: bool
) -> None:
    splits = read(tmp_path, {**PAIR, **columns}, {**PAIR, **columns, "prompt": "q"})
    notes = splits.notes.read["train"]
    assert [record.margin for record in splits.train] == [margin] * 2
    assert (notes.num_metadata_scores, notes.ignored_columns) == ((2, {}) if told else (0, {"metadata": 2}))
    line = (
        "train: 2 rows have the scores of their answers, or the margin, in the column 'metadata', of which nothing "
        "else is read"
    )
    assert (line in splits.notes.lines()) is told


def test_scores_beside_ranked_or_labelled_answers_leave_metadata_ignored(tmp_path: Path) -> None:
    inside = {"metadata": {"score_chosen": 8, "score_rejected": 7}}
    ranked = read(tmp_path, {**RATED, **inside})
    assert ranked.notes.read["train"].ignored_columns == {"metadata": 1}
    joined = read(tmp_path, kto("p", "a", True, **inside), kto("p", "b", False, **inside))
    assert joined.notes.read["train"].ignored_columns == {"metadata": 2}


def test_a_least_margin_is_refused_where_there_are_no_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1: data.min_margin=1 needs the scores of both answers"):
        read(tmp_path, PAIR, min_margin=1)


def test_runs_that_do_not_set_the_rules_keep_their_names() -> None:
    name = load_config(["data=files", "data.train=x.jsonl"]).run.name
    assert load_config(["data=files", "data.train=x.jsonl", "data.pairs=null"]).run.name == name
    others = [["data.pairs=all"], ["data.min_margin=0"], ["data.min_margin=1"]]
    names = {load_config(["data=files", "data.train=x.jsonl", *more]).run.name for more in others}
    assert len(names | {name}) == 4


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("a.jsonl:4", ["a.jsonl:4"]),
        ("a+1.json:row 4", ["a+1.json:row 4"]),
        ("a.jsonl:4+1", ["a.jsonl:4", "a.jsonl:1"]),
        ("a.csv:row 4+row 1", ["a.csv:row 4", "a.csv:row 1"]),
        ("a+b.jsonl:4+c+d.jsonl:1", ["a+b.jsonl:4", "c+d.jsonl:1"]),
        ("a.jsonl:1 pair 2", ["a.jsonl:1"]),
    ],
)
def test_the_place_of_a_pair_names_the_rows_that_it_was_made_of(place: str, rows: list[str]) -> None:
    assert rows_of(place) == rows


def test_the_turns_before_a_question_are_part_of_it(tmp_path: Path) -> None:
    """Answers to one question after different turns are no pair."""
    first, second = ({"instruction": "And?", "history": [["Hi", said]]} for said in ("Hello", "Go"))
    rows = [
        {**first, "output": "a", "label": True},
        {**second, "output": "b", "label": False},
        {**first, "output": "c", "label": False},
    ]
    (pair,) = read(tmp_path, *rows).train
    assert [message["content"] for message in (*pair.prompt, *pair.chosen, *pair.rejected)] == [
        *("Hi", "Hello", "And?"),
        *("a", "c"),
    ]


def test_turns_beside_a_prompt_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "history": [["Hi", "Hello"]], "completion": word, "label": word == "a"} for word in "ab"]
    assert read(tmp_path, *rows).notes.read["train"].ignored_columns == {"history": 2}


def test_a_row_that_names_its_better_answer_is_not_judged_by_scores_beside_it(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": "No.", "rejected": "Hi!", "responses": ["Hi!", "No."], "scores": [2, 1]}
    (pair,) = read(tmp_path, row).train
    assert (pair.chosen, pair.rejected) == ("No.", "Hi!")


@pytest.mark.parametrize(("winner", "chosen"), [("1.0", "x"), ("2.0", "y"), (" 2 ", "y"), (1.0, "x")])
def test_a_table_writes_the_winner_as_a_number(winner: object, chosen: str, tmp_path: Path) -> None:
    (pair,) = read(tmp_path, {"prompt": "p", "response_1": "x", "response_2": "y", "winner": winner}).train
    assert pair.chosen == chosen
