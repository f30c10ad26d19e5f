"""Other systems' rows: each becomes the row that TRL would hold."""

from typing import Any

import pytest

from prefopt.config.choices import DataFormat
from prefopt.data.formats import FORMATS, alpaca, convert, detect_format, openai, sharegpt, swift, unread_columns
from prefopt.data.pairing import Pair, Pairing, PairRule
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
    assert sharegpt.read_pair(row) == {
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
    assert sharegpt.read_example(row) == {
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
    assert sharegpt.read_example(row)["messages"][1] == {**turn("assistant", "Hi!"), "weight": 0}


def test_parallel_function_calls_stay_in_one_message() -> None:
    value = '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'
    row = {"conversations": [HUMAN, {"from": "function_call", "value": value}]}
    calls = sharegpt.read_example(row)["messages"][1]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["a", "b"]


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2", "system": "Be brief."}
    assert alpaca.read_example(row) == {
        "prompt": [turn("system", "Be brief."), turn("user", "Add.\n1 + 1")],
        "completion": [turn("assistant", "2")],
    }
    assert alpaca.read_example({**row, "input": ""})["prompt"][1] == turn("user", "Add.")


def test_alpaca_pairs_and_history() -> None:
    row = {"instruction": "And now?", "chosen": "3", "rejected": "4", "history": [["1+1?", "2"]]}
    assert alpaca.read_pair(row) == {
        "prompt": [turn("user", "1+1?"), turn("assistant", "2"), turn("user", "And now?")],
        "chosen": [turn("assistant", "3")],
        "rejected": [turn("assistant", "4")],
    }


def test_bedrock_conversations_keep_their_system_prompt() -> None:
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


def nova(*candidates: dict[str, Any]) -> dict[str, Any]:
    """A pair of Nova's, with these candidates for the answer."""
    question = {"role": "user", "content": [{"text": "Hi?"}]}
    return {
        "system": [{"text": "Be brief."}],
        "messages": [question, {"role": "assistant", "candidates": [*candidates]}],
    }


def candidate(label: str, text: str) -> dict[str, Any]:
    return {"content": [{"text": text}], "preferenceLabel": label}


def test_the_candidates_of_nova_are_a_pair_in_any_order() -> None:
    row = nova(candidate("non-preferred", "No."), candidate("preferred", "Hi!"))
    assert detect_format(row, "preference") is DataFormat.bedrock
    assert convert(row, DataFormat.bedrock, "preference") == {
        "prompt": [turn("system", "Be brief."), row["messages"][0]],
        "chosen": [{"role": "assistant", "content": [{"text": "Hi!"}]}],
        "rejected": [{"role": "assistant", "content": [{"text": "No."}]}],
    }
    assert unread_columns(row, DataFormat.bedrock, "preference", ("prompt", "chosen", "rejected")) == []


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["preferred"], "must have a preferred and a non-preferred answer"),
        (["preferred", "preferred"], "two candidates of 'messages[1]' are preferred"),
        (["preferred", "good"], "candidates[1].preferenceLabel' must be one of preferred, non-preferred, found"),
        ([["preferred"]], "candidates[0].preferenceLabel' must be one of"),
    ],
)
def test_other_candidates_are_refused(labels: list[Any], part: str) -> None:
    with pytest.raises(RowError) as caught:
        convert(nova(*(candidate(label, "x") for label in labels)), DataFormat.bedrock, "preference")
    assert part in str(caught.value)


def gemini(*scores: Any) -> dict[str, Any]:
    """A pair of Gemini's whose answers have these scores."""
    answers = [{"score": score, "completion": content("model", f"scored {score}")} for score in scores]
    return {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [content("user", "Hi?")],
        "completions": answers,
    }


def content(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text[:2]}, {"text": text[2:]}]}


@pytest.mark.parametrize("scores", [(1, 0), (0, 1), (0.0, 1.0)])
def test_the_completion_with_score_1_is_the_chosen_one(scores: tuple[float, float]) -> None:
    row = gemini(*scores)
    assert detect_format(row, "preference") is DataFormat.gemini
    one, zero = (next(score for score in scores if score == wanted) for wanted in (1, 0))
    assert convert(row, DataFormat.gemini, "preference") == {
        "prompt": [turn("system", "Be brief."), turn("user", "Hi?")],
        "chosen": [turn("assistant", f"scored {one}")],
        "rejected": [turn("assistant", f"scored {zero}")],
    }
    assert unread_columns(row, DataFormat.gemini, "preference", ("prompt", "chosen", "rejected")) == []


def test_contents_alone_are_a_demonstration() -> None:
    row = {"contents": [content("user", "Hi?"), content("model", "Hi!")]}
    assert convert(row, DataFormat.gemini, "sft") == {"messages": [turn("user", "Hi?"), turn("assistant", "Hi!")]}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (gemini(1), "'completions' must be a list of two"),
        (gemini(1, 1), "one with score 1 (preferred) and one with score 0"),
        (gemini(1, 0.5), "completions[1].score' must be 1 (preferred) or 0, found"),
        (gemini(True, 0), "completions[0].score' must be 1"),
        (
            gemini(1, 0) | {"contents": [{"role": "assistant", "parts": []}]},
            "contents[0].role' must be one of user, model",
        ),
        (gemini(1, 0) | {"contents": [{"role": "user", "parts": "Hi?"}]}, "contents[0]' must be {parts"),
    ],
)
def test_other_rows_of_gemini_are_refused(row: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError) as caught:
        convert(row, DataFormat.gemini, "preference")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "winner", "chosen"),
    [
        (("response_a", "response_b"), "a", 0),
        (("response_a", "response_b"), "B", 1),
        (("answer_a", "answer_b"), "model_b", 1),
        (("response_a", "response_b"), "response_a", 0),
        (("response_1", "response_2"), 1, 0),
        (("response_1", "response_2"), "2", 1),
        (("output_1", "output_2"), 2.0, 1),
        (("response_0", "response_1"), 1, 1),
        (("response_0", "response_1"), 0, 0),
        (("output_1", "output_2"), 2, 1),
    ],
)
def test_of_two_answers_the_winner_is_the_chosen_one(columns: tuple[str, str], winner: Any, chosen: int) -> None:
    row = {"question": "Hi?", **dict(zip(columns, ("first", "second"), strict=True)), "winner": winner}
    assert detect_format(row, "preference") is DataFormat.ab
    found = convert(row, DataFormat.ab, "preference")
    assert found is not None
    answers = ("first", "second")
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("Hi?", answers[chosen], answers[1 - chosen])
    assert unread_columns(row, DataFormat.ab, "preference", ("prompt", "chosen", "rejected")) == []


@pytest.mark.parametrize("winner", ["tie", "Tie (bothbad)", "neither"])
def test_a_tie_is_no_pair(winner: str) -> None:
    row = {"prompt": "Hi?", "response_a": "first", "response_b": "second", "winner": winner}
    assert convert(row, DataFormat.ab, "preference") is None


@pytest.mark.parametrize("winner", [3, 0, "first", None, True, ["a"], ""])
def test_a_winner_that_is_neither_answer_is_refused(winner: Any) -> None:
    row = {"prompt": "Hi?", "response_1": "first", "response_2": "second", "preference": winner}
    with pytest.raises(RowError, match="'preference' must be 1, 2 or tie, found"):
        convert(row, DataFormat.ab, "preference")


def test_whole_conversations_side_by_side_need_no_question() -> None:
    sides = {f"conversation_{side}": [turn("user", "Hi?"), turn("assistant", side)] for side in "ab"}
    row = {**sides, "winner": "model_b"}
    assert convert(row, DataFormat.ab, "preference") == {
        "chosen": sides["conversation_b"],
        "rejected": sides["conversation_a"],
    }
    with pytest.raises(RowError, match="the question is missing: one of prompt, question"):
        convert({"response_a": "x", "response_b": "y", "winner": "a"}, DataFormat.ab, "preference")


def pairs_of(row: dict[str, Any], rule: PairRule | None = None) -> list[Pair]:
    """The pairs of a row of rated answers at x:1."""
    found = convert(row, DataFormat.ratings, "preference")
    assert found is not None
    return Pairing(rule or PairRule()).make(found, "x:1", row)


@pytest.mark.parametrize(
    "row",
    [
        {"completions": [{"response": "b", "overall_score": 2}, {"response": "a", "overall_score": 4.5}]},
        {"answers": [{"answer": "m", "rank": 2}, {"answer": "b", "rank": 3}, {"answer": "a", "rank": 1}]},
        {"responses": ["m", "a", "b"], "scores": [3, 9, -1]},
        {"candidates": ["a", "m", "b"], "ranks": [1, 2, 3]},
        {"responses": ["a", "b", "a2", "b2"], "rewards": [1.0, 0.0, 1.0, 0.0]},
    ],
)
def test_of_rated_answers_the_best_is_chosen_and_the_worst_rejected(row: dict[str, Any]) -> None:
    row = {"question": "Hi?", **row}
    assert detect_format(row, "preference") is DataFormat.ratings
    (made,) = pairs_of(row)
    pair = made.row
    assert (pair["prompt"], pair["chosen"], pair["rejected"], made.place) == ("Hi?", "a", "b", "x:1")
    assert made.margin is not None
    assert made.margin > 0
    assert unread_columns(row, DataFormat.ratings, "preference", ("prompt", "chosen", "rejected")) == []


def test_answers_that_are_equally_good_are_no_pair() -> None:
    assert pairs_of({"prompt": "Hi?", "responses": ["a", "b"], "scores": [3, 3.0]}) == []


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"responses": ["a", "b"], "scores": [1]}, "'scores' must be a list of 2 numbers"),
        ({"responses": ["a", "b"], "scores": [1, None]}, "'scores[1]' must be a number, found null"),
        ({"responses": ["a", "b"], "scores": [1, float("nan")]}, "'scores[1]' must be a number"),
        ({"responses": ["a", "b"], "scores": [1, "2"]}, "'scores[1]' must be a number, found text"),
        ({"answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, "'rank of answer 1' must be a number"),
        ({"answers": [{"answer": "a", "rank": 1}, {"rank": 2}]}, "answer 1 must be {response, rank}, found"),
        ({"answers": [{"answer": "a", "rank": 1}, "b"]}, "answer 1 must be {response"),
    ],
)
def test_answers_without_a_number_each_are_refused(row: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError) as caught:
        convert({"prompt": "Hi?", **row}, DataFormat.ratings, "preference")
    assert part in str(caught.value)


def test_every_format_but_trls_own_has_a_module() -> None:
    assert {*FORMATS, DataFormat.auto, DataFormat.trl} == set(DataFormat)


def test_openai_pairs_keep_messages_and_tools() -> None:
    row = {
        "input": {"messages": [turn("user", "Hi?")], "tools": [{"type": "function"}], "parallel_tool_calls": True},
        "preferred_output": [turn("assistant", "Hi!")],
        "non_preferred_output": [turn("assistant", "No.")],
        "id": 7,
    }
    assert openai.read_pair(row) == {
        "prompt": [turn("user", "Hi?")],
        "chosen": [turn("assistant", "Hi!")],
        "rejected": [turn("assistant", "No.")],
        "tools": [{"type": "function"}],
    }
    fields = ("prompt", "chosen", "rejected")
    assert unread_columns(row, DataFormat.openai, "preference", fields) == ["id", "input.parallel_tool_calls"]


def test_llama_factorys_messages_are_read_in_the_place_of_sharegpt_turns() -> None:
    row = {"messages": [turn("user", "Hi?")], "chosen": turn("assistant", "Hi!"), "rejected": turn("assistant", "No.")}
    converted = sharegpt.read_pair(row)
    assert [converted[name] for name in ("prompt", "chosen", "rejected")] == [
        [turn("user", "Hi?")],
        [turn("assistant", "Hi!")],
        [turn("assistant", "No.")],
    ]
    assert unread_columns(row, DataFormat.sharegpt, "preference", ("prompt", "chosen", "rejected")) == []


def test_swift_pairs_hold_another_last_answer_or_another_conversation() -> None:
    messages = [turn("user", "Hi?"), turn("assistant", "Hi!")]
    assert swift.read_pair({"messages": messages, "rejected_response": "No."}) == {
        "prompt": [turn("user", "Hi?")],
        "chosen": [turn("assistant", "Hi!")],
        "rejected": [turn("assistant", "No.")],
    }
    other = [turn("user", "Hi?"), turn("assistant", "No.")]
    assert swift.read_pair({"messages": messages, "rejected_messages": other})["rejected"] == other


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
        ({"response_a": "", "response_b": "", "chosen": "", "rejected": ""}, "preference", DataFormat.trl),
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
        sharegpt.read_example({"conversations": conversations})
    assert part in str(caught.value)


def test_an_openai_row_without_messages_is_refused() -> None:
    with pytest.raises(RowError, match="'input' must be an object with 'messages'"):
        openai.read_pair({"input": "Hi?", "preferred_output": [], "non_preferred_output": []})
