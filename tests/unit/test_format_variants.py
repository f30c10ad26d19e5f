"""Rows as systems write them beside the layout that their documentation shows first; each is read whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.data.reading import ReadResult, read_records
from prefopt.process.errors import UserError


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


HI, YES, NO = turn("user", "Hi?"), turn("assistant", "Hi!"), turn("assistant", "No.")


def read(folder: Path, *rows: dict[str, Any], kind: Kind = "preference") -> ReadResult:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(str(path), format=DataFormat.auto, kind=kind)


def read_one(folder: Path, *rows: dict[str, Any]) -> tuple[Any, Any, Any]:
    (record,) = read(folder, *rows).records
    return record.prompt, record.chosen, record.rejected  # type: ignore[union-attr]


QUESTION = {"instruction": "Add.", "input": "1 + 1"}


@pytest.mark.parametrize(
    "rows",
    [
        [{**QUESTION, "output": "2", "kto_tag": True}, {**QUESTION, "output": "3", "kto_tag": False}],
        [{**QUESTION, "output_1": "2", "output_2": "3", "preference": 1}],
        [{**QUESTION, "completions": [{"response": "3", "score": 1}, {"response": "2", "score": 4}]}],
    ],
    ids=["kto", "ab", "ratings"],
)
def test_the_input_of_an_instruction_is_part_of_the_question(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert read_one(tmp_path, *rows) == ("Add.\n1 + 1", "2", "3")


def test_labelled_answers_to_different_inputs_are_no_pair(tmp_path: Path) -> None:
    first = {**QUESTION, "output": "2", "label": True}
    result = read(tmp_path, first, {**QUESTION, "input": "5 + 5", "output": "3", "label": False})
    assert (len(result.records), result.notes.num_waiting_skipped) == (0, 2)


def test_a_second_question_that_is_not_read_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": "Add.", "query": "1 + 1", "completion": text, "label": text == "2"} for text in ("2", "3")]
    assert read(tmp_path, *rows).notes.ignored_columns == {"query": 2}
    chats = [{"messages": [HI, answer], "prompt": "Ho?", "label": answer is YES} for answer in (YES, NO)]
    assert read(tmp_path, *chats).notes.ignored_columns == {"prompt": 2}


def test_an_input_that_is_empty_adds_nothing_and_is_not_told(tmp_path: Path) -> None:
    result = read(tmp_path, {"instruction": "Add.", "input": "", "output_1": "2", "output_2": "3", "preference": 1})
    assert (result.records[0].prompt, result.notes.ignored_columns) == ("Add.", {})


def test_labelled_conversations_are_joined_like_labelled_messages(tmp_path: Path) -> None:
    rows = [
        {"conversations": [said("human", "Hi?"), said("gpt", text)], "system": "Be brief.", "kto_tag": text == "Hi!"}
        for text in ("Hi!", "No.")
    ]
    assert read_one(tmp_path, *rows) == ([turn("system", "Be brief."), HI], [YES], [NO])


@pytest.mark.parametrize(
    "question",
    [{"prompt": "Hi?"}, {"prompt": [said("human", "Hi?")]}, {"conversations": [said("human", "Hi?")]}, {}],
    ids=["text", "turns", "conversations", "whole"],
)
def test_answers_that_are_lists_of_sharegpt_turns_are_read(tmp_path: Path, question: dict[str, Any]) -> None:
    start = [] if question else [said("human", "Hi?")]
    row = {**question, "chosen": [*start, said("gpt", "Hi!")], "rejected": [*start, said("gpt", "No.")]}
    assert read_one(tmp_path, row) == ([HI], [YES], [NO])


@pytest.mark.parametrize("key", ["text", "value"])
def test_chosen_messages_are_read(tmp_path: Path, key: str) -> None:
    def chat(answer: str) -> list[dict[str, object]]:
        return [turn("user", "Hi?"), turn("assistant", [{"type": "text", key: answer}])]

    row = {"chosen_messages": chat("Hi!"), "rejected_messages": chat("No.")}
    assert read_one(tmp_path, row) == ([HI], [YES], [NO])


def test_two_outputs_of_an_instruction_are_a_pair_the_better_one_first(tmp_path: Path) -> None:
    row = {**QUESTION, "output": ["2", "3"]}
    answers = [turn("assistant", text) for text in row["output"]]
    assert read_one(tmp_path, row) == ([turn("user", "Add.\n1 + 1")], answers[:1], answers[1:])
    with pytest.raises(UserError, match="These are pairs: set algorithm=dpo"):
        read(tmp_path, row, kind="sft")
    with pytest.raises(UserError, match="'output' has 3 answers without scores"):
        read(tmp_path, {**QUESTION, "output": ["2", "3", "4"]})


def test_an_output_beside_a_pair_is_told_as_ignored(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "output": "1", "chosen": "2", "rejected": "3"}
    assert read(tmp_path, row).notes.ignored_columns == {"output": 1}
    assert read(tmp_path, row, kind="sft").notes.ignored_columns == {"chosen": 1, "rejected": 1}


def test_a_thought_is_no_part_of_an_answer(tmp_path: Path) -> None:
    def answer(score: int, *parts: dict[str, object]) -> dict[str, object]:
        return {"score": score, "completion": {"role": "model", "parts": list(parts)}}

    contents = [{"role": "user", "parts": [{"text": "Hi?"}]}]
    thinking = answer(1, {"text": "Hm.", "thought": True}, {"text": "Hi!"})
    with pytest.raises(UserError, match=r"'completions\[0\].completion.parts\[0\]' must be a part"):
        read(tmp_path, {"contents": contents, "completions": [thinking, answer(0, {"text": "No."})]})
