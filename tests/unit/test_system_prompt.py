"""`data.system`: one system prompt for the conversations that have none."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.load import load_config
from prefopt.data.loading import Splits, read_splits
from prefopt.data.records import Record
from prefopt.data.shown_record import read_record
from prefopt.process.errors import UserError

SYSTEM = {"role": "system", "content": "Be brief."}


def chat(number: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"q{number}"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


def read(folder: Path, rows: list[dict[str, Any]], *overrides: str, kind: Any = "preference") -> Splits:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(["data=files", f"data.train={file}", "data.held_out_fraction=0", *overrides])
    assert read_record(config.data, kind=kind, row=0)[0] == read_splits(config.data, kind=kind, seed=0).train[0]
    return read_splits(config.data, kind=kind, seed=0)


def systems(records: list[Record]) -> list[Any]:
    return [record.prompt[0] for record in records]  # type: ignore[index]


def test_conversations_without_a_system_prompt_get_it_and_others_keep_theirs(tmp_path: Path) -> None:
    own = chat(1)
    own["prompt"].insert(0, {"role": "system", "content": "Be kind."})
    splits = read(tmp_path, [chat(0), own], "data.system='Be brief.'")
    assert systems(splits.train) == [SYSTEM, {"role": "system", "content": "Be kind."}]
    assert splits.train[0].prompt[1:] == chat(0)["prompt"]  # type: ignore[index]
    lines = splits.notes.lines()
    assert "train: 1 row got the system prompt of data.system" in lines
    assert "train: 1 row keeps a system prompt of its own, though data.system is set" in lines


def test_it_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("Be brief.\n", encoding="utf-8")
    assert systems(read(tmp_path, [chat(0)], f"data.system={tmp_path / 'guide.md'}").train) == [SYSTEM]


def test_demonstrations_get_it_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    splits = read(tmp_path, [{"messages": messages}], "data.system='Be brief.'", "algorithm=sft", kind="sft")
    assert splits.train[0].messages == [SYSTEM, *messages]  # type: ignore[union-attr]


def test_text_needs_to_become_a_chat_first(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: data\.system goes before messages, and this row is text\. Set"
    ):
        read(tmp_path, [row], "data.system='Be brief.'", "data.as_chat=false")
    assert systems(read(tmp_path, [row], "data.system='Be brief.'", "data.as_chat=true").train) == [SYSTEM]
    assert systems(read(tmp_path, [row], "data.system='Be brief.'").train) == [SYSTEM], (
        "auto: text has no place for it"
    )


@pytest.mark.parametrize(("given", "told"), [("' '", "holds no text"), ("absent.md", r"absent\.md.*A prompt itself")])
def test_an_empty_prompt_and_an_absent_file_are_refused(tmp_path: Path, given: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"data\.system: .*{told}"):
        read(tmp_path, [chat(0)], f"data.system={given}")


def test_the_same_question_on_both_sides_is_found_with_it(tmp_path: Path) -> None:
    read(tmp_path, [chat(0), chat(1)])
    file = tmp_path / "rows.jsonl"
    config = load_config(["data=files", f"data.train={file}", "data.held_out_fraction=0", "data.system='Be brief.'"])
    with pytest.raises(UserError, match="2 training prompts are among them"):
        read_splits(config.data, kind="preference", seed=0, measured=str(file))
    other = load_config(["data=files", f"data.train={file}", f"data.held_out={file}", "data.system='Be brief.'"])
    with pytest.raises(UserError, match="this is the same data"):
        read_splits(other.data, kind="preference", seed=0)
