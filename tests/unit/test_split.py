"""Splitting: by prompt, exactly, and the same whatever the order of rows; and the whole way through `read_splits`."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.config.choices import OnBadRow
from prefopt.config.gate import GateConfig
from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.data.split import find_overlap, nested_subsets, prompt_key, split_by_prompt
from prefopt.evaluation.asked import _texts
from prefopt.process.errors import UserError


def pair(prompt: Any, answer: str = "a", tools: Any = None) -> PreferencePair:
    return PreferencePair(prompt, answer, "worse", tools, {}, source=f"{prompt}/{answer}")


def chat(*contents: str) -> PreferencePair:
    return pair([{"role": role, "content": text} for role, text in zip(("system", "user"), contents, strict=True)])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.floats(0, 0.99), st.integers(0, 5))
def test_a_split_holds_out_the_exact_share_of_prompts_and_leaks_none(
    prompts: list[int], fraction: float, seed: int
) -> None:
    rows = [pair(f"question {prompt}", str(index)) for index, prompt in enumerate(prompts)]
    train, held_out = split_by_prompt(rows, fraction=fraction, seed=seed)
    expected = max(round(fraction * len(set(prompts))), 1) if fraction else 0
    assert len({row.prompt for row in held_out}) == expected
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert sorted(row.source for row in [*train, *held_out]) == sorted(row.source for row in rows)


def test_a_split_does_not_depend_on_row_order() -> None:
    rows = [pair(f"question {index % 50}", str(index)) for index in range(100)]
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = (split_by_prompt(order, fraction=0.2, seed=3)[1] for order in (rows, shuffled))
    assert {row.source for row in first} == {row.source for row in second}


def test_a_split_depends_on_the_seed() -> None:
    rows = [pair(f"question {index}") for index in range(100)]
    first, second = (split_by_prompt(rows, fraction=0.2, seed=seed)[1] for seed in (0, 1))
    assert {row.source for row in first} != {row.source for row in second}


def test_a_split_does_not_depend_on_pythons_hash_seed() -> None:
    code = (
        "from prefopt.data.split import split_by_prompt\n"
        "from prefopt.data.records import PreferencePair as P\n"
        "rows = [P(f'q {i}', 'a', 'b', None, {}, str(i)) for i in range(40)]\n"
        "print([r.source for r in split_by_prompt(rows, fraction=0.1, seed=0)[1]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_whitespace_does_not_make_another_prompt_but_system_and_tools_do() -> None:
    assert prompt_key(pair("a  b\n")) == prompt_key(pair("a b"))
    assert prompt_key(pair("a b")) != prompt_key(pair("ab"))
    assert prompt_key(chat("Be brief.", "Hi? ")) == prompt_key(chat("Be  brief.", "Hi?"))
    assert prompt_key(chat("Be brief.", "Hi?")) != prompt_key(chat("Be rude.", "Hi?"))
    assert prompt_key(pair("a", tools=[{"name": "x"}])) != prompt_key(pair("a"))


def test_ids_times_and_the_order_of_keys_make_no_other_prompt_but_what_is_called_does() -> None:
    def asked(number: int, zone: str) -> PreferencePair:
        arguments = {"zone": zone, "n": 1} if number else {"n": 1, "zone": zone}
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        question = {"role": "user", "content": "When?", "timestamp": number}
        empty = {"content": ""} if number else {}
        answer = {"role": "tool", "content": "9", "tool_call_id": f"call_{number}"}
        tools = [{"type": "function", "function": {"name": name}} for name in ("clock", "map")]
        return pair(
            [question, {"role": "assistant", "tool_calls": [call], **empty}, answer],
            tools=tools if number else tools[::-1],
        )

    assert prompt_key(asked(0, "UTC")) == prompt_key(asked(1, "UTC"))
    assert prompt_key(asked(0, "UTC")) != prompt_key(asked(0, "CET"))


def test_conversations_with_one_opening_stay_together() -> None:
    opening = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes?"}]
    longer = [*opening, {"role": "user", "content": "More."}, {"role": "assistant", "content": "No."}]
    short, long = (SFTExample(messages=messages, source="x") for messages in (opening, longer))
    assert prompt_key(short) == prompt_key(long)


def say(role: str, content: str, **marks: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **marks}


def test_the_prompt_of_a_conversation_is_all_before_its_first_trained_turn() -> None:
    def key(*messages: dict[str, Any]) -> bytes:
        return prompt_key(SFTExample(messages=list(messages), source="x"))

    def greeted(question: str) -> bytes:
        return key(say("assistant", "Welcome!"), say("user", question), say("assistant", "Yes."))

    assert greeted("Late?") == greeted("Late? ")
    assert greeted("Late?") != greeted("Lost?")
    system = say("system", "Be brief.")
    assert key(system, say("assistant", "Hi."), say("user", "a"), say("assistant", "b")) != key(
        system, say("assistant", "Hi."), say("user", "c"), say("assistant", "b")
    )
    marked = [say("user", "2+2?"), say("assistant", "5", train=False)]
    again, well = [say("user", "Again."), say("assistant", "4")], [say("user", "Well?"), say("assistant", "4")]
    assert key(*marked, *again) != key(*marked, *well)
    unmarked = [say("user", "2+2?"), say("assistant", "5")]
    assert key(*unmarked, *again) == key(*unmarked, *well)
    assert key(*marked, *again) == prompt_key(
        SFTExample(prompt=[*unmarked, again[0]], completion=again[1:], source="y")
    )


QUESTION, FIRST, AGAIN, SECOND = say("user", "q"), say("assistant", "one"), say("user", "r"), say("assistant", "two")
TALK = SFTExample(messages=[QUESTION, FIRST, AGAIN, SECOND], source="talk")
LATER: dict[str, Any] = {
    "marked": SFTExample(messages=[QUESTION, {**FIRST, "train": False}, AGAIN, SECOND], source="later"),
    "completion": SFTExample(prompt=[QUESTION, FIRST, AGAIN], completion=[SECOND], source="later"),
    "pair": PreferencePair([QUESTION, FIRST, AGAIN], [SECOND], [FIRST], None, {}, source="later"),
}


@pytest.mark.parametrize("kind", LATER)
def test_the_prompt_of_a_later_turn_is_found_on_the_other_side_and_kept_on_one(kind: str) -> None:
    later = LATER[kind]
    assert prompt_key(later) != prompt_key(TALK)
    assert [row.train.source for row in find_overlap([later], [TALK])] == ["later"]
    assert [row.train.source for row in find_overlap([TALK], [later])] == ["talk"]
    others: list[Any] = [pair(f"question {index}") for index in range(8)]
    for seed in range(5):
        for rows in ([later, *others, TALK], [TALK, *others[::-1], later]):
            train, held_out = split_by_prompt(rows, fraction=0.3, seed=seed)
            assert ({"talk", "later"} <= {row.source for row in train}) != (
                {"talk", "later"} <= {row.source for row in held_out}
            )
            assert len({row.source for row in held_out} - {"talk", "later"}) + (TALK in held_out) == 3
    assert find_overlap([LATER[kind]], [SFTExample(messages=[QUESTION, FIRST], source="x")]) == []


@pytest.mark.parametrize("side", ["completion", "chosen", "rejected"])
def test_a_completion_of_several_turns_has_the_prompts_of_all(side: str) -> None:
    long = [FIRST, AGAIN, SECOND]
    if side == "completion":
        record: Any = SFTExample(prompt=[QUESTION], completion=long, source="long")
    else:
        sides = {"chosen": [SECOND], "rejected": [SECOND], side: long}
        record = PreferencePair([QUESTION], tools=None, chat_template_kwargs={}, source="long", **sides)
    assert len(find_overlap([record], [LATER["pair"]])) == len(find_overlap([LATER["pair"]], [record])) == 1
    assert prompt_key(record) == prompt_key(TALK)


def test_a_report_shows_the_prompt_that_the_models_answer() -> None:
    talk = [say("user", "q"), say("assistant", "one"), say("user", "r"), say("assistant", "two")]
    assert _texts(SFTExample(messages=talk, source="x")) == ("q", "one")
    marked = [talk[0], {**talk[1], "train": False}, *talk[2:]]
    assert _texts(SFTExample(messages=marked, source="x")) == ("user: q\nassistant: one\nuser: r", "two")


def test_overlap_names_both_rows() -> None:
    train = [pair("a", "1"), pair("b", "2"), pair("c ", "3")]
    held_out = [pair("c", "4"), pair("c", "5"), pair("a", "6")]
    assert [(row.source, other.source) for row, other in find_overlap(train, held_out)] == [
        ("a/1", "a/6"),
        ("c /3", "c/4"),
    ]


def write(path: Path, prompts: list[str], **changes: Any) -> str:
    rows = [{"prompt": prompt, "chosen": "good", "rejected": "bad", **changes} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_splits_without_a_held_out_file_hold_out_a_share(tmp_path: Path) -> None:
    config = DataConfig(train=write(tmp_path / "a.jsonl", [str(i) for i in range(20)]), held_out_fraction=0.25)
    splits = read_splits(config, kind="preference", seed=0)
    assert (len(splits.train), len(splits.held_out or [])) == (15, 5)
    assert splits.notes.num_records == {"train": 15, "held_out": 5}


def test_a_fraction_of_zero_holds_nothing_out(tmp_path: Path) -> None:
    config = DataConfig(train=write(tmp_path / "a.jsonl", ["a", "b"]), held_out_fraction=0)
    assert read_splits(config, kind="preference", seed=0).held_out is None


@pytest.mark.parametrize("on_overlap", OnBadRow)
def test_the_training_file_as_held_out_file_is_told_to_be_the_same_data(tmp_path: Path, on_overlap: OnBadRow) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "b"])
    config = DataConfig(train=path, held_out=path, on_overlap=on_overlap)
    with pytest.raises(UserError, match=r"all 2 training rows .* this is the same data. Leave data.held_out out"):
        read_splits(config, kind="preference", seed=0)


def test_with_the_gate_off_even_the_same_data_are_trained_and_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "b"])
    splits = read_splits(DataConfig(train=path, held_out=path, gate=GateConfig.off()), kind="preference", seed=0)
    assert (len(splits.train), len(splits.held_out or [])) == (2, 2)


def test_overlap_with_the_held_out_file_is_refused_or_skipped(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", ["a", "b", "c"]), write(tmp_path / "b.jsonl", ["x", "b"])
    with pytest.raises(UserError, match=r"a.jsonl:2: .* held-out row .*b.jsonl:2\. .* Remove") as caught:
        read_splits(DataConfig(train=train, held_out=held_out), kind="preference", seed=0)
    assert "data.on_overlap=skip" in str(caught.value)
    config = DataConfig(train=train, held_out=held_out, on_overlap=OnBadRow.skip)
    splits = read_splits(config, kind="preference", seed=0)
    assert [record.prompt for record in splits.train] == ["a", "c"]
    assert "train: 1 row skipped: its prompt is held out (data.on_overlap=skip)" in splits.notes.lines()


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", ["a"])
    bad = write(tmp_path / "b.jsonl", ["b"], rejected="good")
    config = DataConfig(train=one, held_out=bad, on_identical=OnBadRow.skip)
    with pytest.raises(UserError, match=r"data.held_out: no rows are left.*1 pair with chosen equal to rejected"):
        read_splits(config, kind="preference", seed=0)


def test_rows_of_one_prompt_cannot_be_split_and_the_message_says_so(tmp_path: Path) -> None:
    same = write(tmp_path / "a.jsonl", ["a"] * 60)
    with pytest.raises(
        UserError, match=r"data.train: all 60 rows have the same prompt \(first .*a.jsonl:1\), so none"
    ) as e:
        read_splits(DataConfig(train=same), kind="preference", seed=0)
    assert "set data.held_out_fraction=0" in str(e.value)
    one = write(tmp_path / "b.jsonl", ["a"])
    with pytest.raises(UserError, match=r"data.train: there is one row \(first "):
        read_splits(DataConfig(train=one), kind="preference", seed=0)


def test_notes_say_only_what_happened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "b", "b"], score=1)
    splits = read_splits(DataConfig(train=path, held_out_fraction=0), kind="preference", seed=0)
    assert splits.notes.lines() == [
        "train: 3 rows read",
        "train: 1 row repeats an earlier row; kept",
        "train: column 'score' has a value in 3 rows and is ignored",
        "train: 3 rows used",
    ]
    assert json.loads(json.dumps(splits.notes.to_dict()))["read"]["train"]["num_duplicates"] == 1


def test_a_part_of_the_prompts_is_the_same_in_every_row_order_and_other_prompts_for_another_seed() -> None:
    records = [pair(f"prompt {row % 20}", f"answer {row}") for row in range(30)]
    (part,) = nested_subsets(records, [0.25], seed=0)
    (reversed_part,) = nested_subsets(records[::-1], [0.25], seed=0)
    (other,) = nested_subsets(records, [0.25], seed=1)
    prompts = {record.prompt for record in part}
    assert len(prompts) == 5
    assert part == reversed_part[::-1]
    assert part == [record for record in records if record.prompt in prompts]
    assert {record.prompt for record in other} != prompts
