"""Other systems' rows: each becomes the row that TRL would hold."""

from typing import Any

import pytest

from prefopt.config.choices import DataFormat
from prefopt.data.formats import (
    convert,
    convert_alpaca_example,
    convert_alpaca_pair,
    convert_openai_pair,
    convert_sharegpt_example,
    convert_sharegpt_pair,
    convert_swift_pair,
    detect_format,
    unread_columns,
)
from prefopt.data.values import RowError

SYSTEM = {"from": "system", "value": "Be brief."}
HUMAN = {"from": "human", "value": "Hi?"}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_sharegpt_pairs_become_prompt_and_one_message_each() -> None:
    row = {
        "conversations": [SYSTEM, HUMAN, {"from": "gpt", "value": "Yes?"}, HUMAN],
        "chosen": {"from": "gpt", "value": "Hi!"},
        "rejected": {"from": "gpt", "value": "No."},
    }
    assert convert_sharegpt_pair(row) == {
        "prompt": [turn("system", "Be brief."), turn("user", "Hi?"), turn("assistant", "Yes?"), turn("user", "Hi?")],
        "chosen": [turn("assistant", "Hi!")],
        "rejected": [turn("assistant", "No.")],
        "tools": None,
    }


def test_sharegpt_function_calls_become_tool_calls() -> None:
    row = {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "UTC"}}'},
            {"from": "observation", "value": '{"time": 5}'},
            {"from": "gpt", "value": "Five."},
        ],
        "tools": '[{"name": "clock", "parameters": {}}]',
    }
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    assert convert_sharegpt_example(row) == {
        "messages": [
            turn("user", "Hi?"),
            {"role": "assistant", "tool_calls": [call]},
            turn("tool", '{"time": 5}'),
            turn("assistant", "Five."),
        ],
        "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
    }


def test_other_keys_of_sharegpt_turns_are_kept_such_as_marks() -> None:
    row = {"conversations": [HUMAN, {"from": "gpt", "value": "Hi!", "weight": 0}]}
    assert convert_sharegpt_example(row)["messages"][1] == {**turn("assistant", "Hi!"), "weight": 0}


def test_parallel_function_calls_stay_in_one_message() -> None:
    value = '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'
    row = {"conversations": [HUMAN, {"from": "function_call", "value": value}]}
    calls = convert_sharegpt_example(row)["messages"][1]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["a", "b"]


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2", "system": "Be brief."}
    assert convert_alpaca_example(row) == {
        "prompt": [turn("system", "Be brief."), turn("user", "Add.\n1 + 1")],
        "completion": [turn("assistant", "2")],
    }
    assert convert_alpaca_example({**row, "input": ""})["prompt"][1] == turn("user", "Add.")


def test_alpaca_pairs_and_history() -> None:
    row = {"instruction": "And now?", "chosen": "3", "rejected": "4", "history": [["1+1?", "2"]]}
    assert convert_alpaca_pair(row) == {
        "prompt": [turn("user", "1+1?"), turn("assistant", "2"), turn("user", "And now?")],
        "chosen": [turn("assistant", "3")],
        "rejected": [turn("assistant", "4")],
    }


def test_bedrock_conversations_keep_their_system_prompt_and_hold_no_pairs() -> None:
    row = {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "Be "}, {"text": "brief."}],
        "messages": [{"role": "user", "content": [{"text": "Hi?"}]}],
    }
    assert detect_format(row, "sft") is DataFormat.bedrock
    assert convert(row, DataFormat.bedrock, "sft") == {"messages": [turn("system", "Be brief."), row["messages"][0]]}
    assert unread_columns(row, DataFormat.bedrock, "sft", ("messages",)) == []
    with pytest.raises(RowError, match=r"hold no pairs. Set algorithm=sft"):
        convert(row, DataFormat.bedrock, "preference")


def test_openai_pairs_keep_messages_and_tools() -> None:
    row = {
        "input": {"messages": [turn("user", "Hi?")], "tools": [{"type": "function"}], "parallel_tool_calls": True},
        "preferred_output": [turn("assistant", "Hi!")],
        "non_preferred_output": [turn("assistant", "No.")],
        "id": 7,
    }
    assert convert_openai_pair(row) == {
        "prompt": [turn("user", "Hi?")],
        "chosen": [turn("assistant", "Hi!")],
        "rejected": [turn("assistant", "No.")],
        "tools": [{"type": "function"}],
    }
    fields = ("prompt", "chosen", "rejected")
    assert unread_columns(row, DataFormat.openai, "preference", fields) == ["id", "input.parallel_tool_calls"]


def test_llama_factorys_messages_are_read_in_the_place_of_sharegpt_turns() -> None:
    row = {"messages": [turn("user", "Hi?")], "chosen": turn("assistant", "Hi!"), "rejected": turn("assistant", "No.")}
    converted = convert_sharegpt_pair(row)
    assert [converted[name] for name in ("prompt", "chosen", "rejected")] == [
        [turn("user", "Hi?")],
        [turn("assistant", "Hi!")],
        [turn("assistant", "No.")],
    ]
    assert unread_columns(row, DataFormat.sharegpt, "preference", ("prompt", "chosen", "rejected")) == []


def test_swift_pairs_hold_another_last_answer_or_another_conversation() -> None:
    messages = [turn("user", "Hi?"), turn("assistant", "Hi!")]
    assert convert_swift_pair({"messages": messages, "rejected_response": "No."}) == {
        "prompt": [turn("user", "Hi?")],
        "chosen": [turn("assistant", "Hi!")],
        "rejected": [turn("assistant", "No.")],
        "system": None,
    }
    other = [turn("user", "Hi?"), turn("assistant", "No.")]
    assert convert_swift_pair({"messages": messages, "rejected_messages": other})["rejected"] == other


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"conversations": [], "chosen": {}}, "preference", DataFormat.sharegpt),
        ({"instruction": "", "output": ""}, "sft", DataFormat.alpaca),
        ({"instruction": "", "chosen": "", "rejected": ""}, "preference", DataFormat.alpaca),
        ({"input": {}, "preferred_output": []}, "preference", DataFormat.openai),
        ({"prompt": "", "chosen": "", "rejected": ""}, "preference", DataFormat.trl),
        ({"messages": []}, "sft", DataFormat.trl),
        ({"messages": [], "chosen": {}, "rejected": {}}, "preference", DataFormat.sharegpt),
        ({"messages": [], "prompt": "", "chosen": [], "rejected": []}, "preference", DataFormat.trl),
        ({"messages": [], "rejected_response": ""}, "preference", DataFormat.swift),
        ({"messages": [], "rejected_response": ""}, "sft", DataFormat.trl),
    ],
)
def test_a_format_is_known_by_its_keys(row: dict[str, Any], kind: str, expected: DataFormat) -> None:
    assert detect_format(row, kind) is expected


@pytest.mark.parametrize(
    ("conversations", "part"),
    [
        ([], "must be a list of turns"),
        ([{"role": "user"}], "must be a turn"),
        ([{"from": "robot", "value": "x"}], "must be one of system, human"),
        ([{"from": ["human"], "value": "x"}], "must be one of system, human"),
        ([HUMAN, {"from": "function_call", "value": "{"}], "not valid JSON"),
        ([HUMAN, {"from": "function_call", "value": '{"name": "x"}'}], "must be a call"),
        ([{"from": "human", "value": 3}], "conversations[0].value' must be text"),
    ],
)
def test_a_bad_sharegpt_turn_is_named(conversations: Any, part: str) -> None:
    with pytest.raises(RowError) as caught:
        convert_sharegpt_example({"conversations": conversations})
    assert part in str(caught.value)


def test_an_openai_row_without_messages_is_refused() -> None:
    with pytest.raises(RowError, match="'input' must be an object with 'messages'"):
        convert_openai_pair({"input": "Hi?", "preferred_output": [], "non_preferred_output": []})
