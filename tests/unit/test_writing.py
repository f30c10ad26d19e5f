"""Rows of other systems: exact rows by hand, and a record that comes back equal from any of them, or is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.config.catalog import read_options
from prefopt.config.provider import PROVIDER, ProviderConfig, read_provider
from prefopt.data.conversion import to_row
from prefopt.data.formats import FORMATS, convert, detect_format
from prefopt.data.messages import UNTRAINED, trained_turns
from prefopt.data.pairing import Pair, Pairing
from prefopt.data.provider_rules import check_rules
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.rows import build_record
from prefopt.data.values import RowError

SYSTEMS = [option.name for option in read_options()[PROVIDER]]
PROVIDERS = {name: read_provider(name) for name in SYSTEMS}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def write(record: Record, system: str) -> list[dict[str, Any]]:
    """The rows of a system for a record."""
    provider: ProviderConfig = PROVIDERS[system]
    kind = "preference" if isinstance(record, PreferencePair) else "sft"
    row = to_row(record)
    check_rules(row, provider, kind)  # type: ignore[arg-type]
    return FORMATS[provider.layout].write[kind](row)  # type: ignore[index]


QUESTION = [turn("system", "Be brief."), turn("user", "Hi?")]
PAIR = PreferencePair(QUESTION, [turn("assistant", "Hi!")], [turn("assistant", "No.")], None, {}, "x:1")
CHAT = SFTExample(messages=[*QUESTION, turn("assistant", "Hi!")], source="x:1")
OPENAI = {
    "input": {"messages": QUESTION},
    "preferred_output": [{"role": "assistant", "content": "Hi!"}],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}


@pytest.mark.parametrize(
    ("system", "rows"),
    [
        ("trl", [{"prompt": QUESTION, "chosen": PAIR.chosen, "rejected": PAIR.rejected}]),
        ("openai", [OPENAI]),
        ("azure", [OPENAI]),
        ("together", [OPENAI]),
        ("fireworks", [OPENAI]),
        (
            "gemini",
            [
                {
                    "system_instruction": {"parts": [{"text": "Be brief."}]},
                    "contents": [{"role": "user", "parts": [{"text": "Hi?"}]}],
                    "completions": [
                        {"score": 1, "completion": {"role": "model", "parts": [{"text": "Hi!"}]}},
                        {"score": 0, "completion": {"role": "model", "parts": [{"text": "No."}]}},
                    ],
                }
            ],
        ),
        (
            "nova",
            [
                {
                    "system": [{"text": "Be brief."}],
                    "messages": [
                        {"role": "user", "content": [{"text": "Hi?"}]},
                        {
                            "role": "assistant",
                            "candidates": [
                                {"content": [{"text": "Hi!"}], "preferenceLabel": "preferred"},
                                {"content": [{"text": "No."}], "preferenceLabel": "non-preferred"},
                            ],
                        },
                    ],
                }
            ],
        ),
        (
            "llamafactory",
            [
                {
                    "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi?"}],
                    "chosen": {"from": "gpt", "value": "Hi!"},
                    "rejected": {"from": "gpt", "value": "No."},
                }
            ],
        ),
        ("swift", [{"messages": [*QUESTION, turn("assistant", "Hi!")], "rejected_response": "No."}]),
        (
            "kto",
            [
                {"prompt": QUESTION, "completion": [turn("assistant", "Hi!")], "label": True},
                {"prompt": QUESTION, "completion": [turn("assistant", "No.")], "label": False},
            ],
        ),
    ],
)
def test_a_pair_becomes_exactly_these_rows(system: str, rows: list[dict[str, Any]]) -> None:
    assert write(PAIR, system) == rows


@pytest.mark.parametrize(
    ("system", "row"),
    [
        *(
            (name, {"messages": CHAT.messages})
            for name in ("trl", "openai", "azure", "together", "fireworks", "swift")
        ),
        (
            "gemini",
            {
                "systemInstruction": {"parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi?"}]},
                    {"role": "model", "parts": [{"text": "Hi!"}]},
                ],
            },
        ),
        (
            "nova",
            {
                "schemaVersion": "bedrock-conversation-2024",
                "system": [{"text": "Be brief."}],
                "messages": [
                    {"role": "user", "content": [{"text": "Hi?"}]},
                    {"role": "assistant", "content": [{"text": "Hi!"}]},
                ],
            },
        ),
        (
            "llamafactory",
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hi?"},
                    {"from": "gpt", "value": "Hi!"},
                ]
            },
        ),
        ("anthropic", {"system": "Be brief.", "messages": [turn("user", "Hi?"), turn("assistant", "Hi!")]}),
    ],
)
def test_a_demonstration_becomes_exactly_this_row(system: str, row: dict[str, Any]) -> None:
    assert write(CHAT, system) == [row]


def test_every_system_has_a_row_that_was_written_by_hand() -> None:
    assert set(SYSTEMS) == {"kto", "anthropic", *(n for n in SYSTEMS if PROVIDERS[n].rows == ["preference", "sft"])}
    assert {
        "trl", "openai", "azure", "together", "fireworks", "gemini", "nova", "llamafactory", "swift", "kto"
    } <= set(SYSTEMS)  # fmt: skip


def test_for_gemini_the_answer_with_score_1_is_the_preferred_one_when_written_and_when_read() -> None:
    (row,) = write(PAIR, "gemini")
    preferred = [each["completion"] for each in row["completions"] if each["score"] == 1]
    assert [part["text"] for each in preferred for part in each["parts"]] == ["Hi!"]
    row["completions"].reverse()
    for completion in row["completions"]:
        completion["score"] = 1 - completion["score"]
    swapped = convert(row, PROVIDERS["gemini"].layout, "preference")
    assert swapped is not None
    assert swapped["chosen"][0]["content"] == "No."


CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}
WITH_TOOLS = SFTExample(
    messages=[
        turn("user", "When?"),
        {"role": "assistant", "tool_calls": [CALL]},
        turn("tool", "12:00", tool_call_id="c1"),
        turn("assistant", "Noon."),
    ],
    tools=[TOOL],
    source="x:1",
)


def test_openai_gets_the_arguments_of_calls_as_text_and_untrained_turns_as_weight_0() -> None:
    (row,) = write(WITH_TOOLS, "openai")
    assert row["tools"] == [TOOL]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"zone": "UTC"}'
    marked = [turn("user", "a"), turn("assistant", "b", train=False), turn("user", "c"), turn("assistant", "d")]
    (row,) = write(SFTExample(messages=marked, source="x:1"), "openai")
    assert [message.get("weight") for message in row["messages"]] == [None, 0, None, None]


def test_a_greeting_that_is_not_trained_stays_so_or_is_refused() -> None:
    greeting = SFTExample(messages=[turn("assistant", "Hi!"), *CHAT.messages[1:]], source="x:1")  # type: ignore[index]
    assert write(greeting, "together")[0]["messages"][0]["weight"] == 0
    with pytest.raises(RowError, match="greets before the first question"):
        write(greeting, "gemini")


def test_llamafactory_gets_calls_as_turns_and_tools_as_text() -> None:
    call = {"type": "function", "function": CALL["function"]}
    said = [
        turn("user", "When?"),
        {"role": "assistant", "tool_calls": [call]},
        turn("tool", "12"),
        turn("assistant", "!"),
    ]
    (row,) = write(SFTExample(messages=said, tools=[TOOL], source="x:1"), "llamafactory")
    assert [each["from"] for each in row["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(row["conversations"][1]["value"]) == CALL["function"]
    assert json.loads(row["tools"]) == [TOOL["function"]]


MANY = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]


@pytest.mark.parametrize(
    ("system", "change", "part"),
    [
        ("fireworks", {"prompt": MANY}, "one question of the user. Found 3 messages"),
        ("together", {"prompt": [turn("user", "a"), turn("user", "b")]}, "two messages in a row of one side"),
        ("nova", {"prompt": [turn("user", "a"), turn("user", "b")]}, "two messages in a row of one side"),
        ("nova", {"prompt": [turn("assistant", "a"), turn("user", "b")]}, "Found a first message of role 'assistant'"),
        ("nova", {"rejected": [turn("assistant", " ")]}, "no empty message. Found one of role 'assistant'"),
        ("gemini", {"tools": [TOOL]}, "no place for 'tools'"),
        ("together", {"tools": [TOOL]}, "Found tools"),
        ("openai", {"chosen": [turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")]}, "3 messages"),
        ("openai", {"prompt": [turn("developer", "a"), turn("user", "b")]}, "Found the role 'developer'"),
        ("gemini", {"prompt": [turn("user", "a"), turn("system", "b"), turn("user", "c")]}, "one system prompt"),
        ("openai", {"prompt": [turn("user", "a", mood="good")]}, "no place for 'mood' of 'prompt[0]'"),
        ("openai", {"chat_template_kwargs": {"enable_thinking": False}}, "no place for 'chat_template_kwargs'"),
        ("openai", {"prompt": "a", "chosen": "b", "rejected": "c"}, "Set data.as_chat=true"),
        ("openai", {"prompt": "Human: a\n\nAssistant:", "chosen": "b", "rejected": "c"}, "Give its turns as messages"),
        ("trl", {"chosen": [turn("assistant", "a", train=False), *MANY[::-1], turn("assistant", "c")]}, "not trained"),
    ],
)
def test_what_a_system_cannot_hold_or_refuses_is_refused(system: str, change: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError) as refusal:
        write(replace(PAIR, **change), system)
    assert part in str(refusal.value)


def test_an_answer_before_the_first_question_is_refused_where_it_would_become_a_greeting() -> None:
    prompt, completion = [turn("system", "a")], [turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    with pytest.raises(RowError, match="before a user has asked anything"):
        write(SFTExample(prompt=prompt, completion=completion, source="x:1"), "openai")


def test_claude_takes_no_turn_markers_and_a_whole_text_has_no_turns() -> None:
    marked = replace(CHAT, messages=[turn("user", "a\n\nHuman: b"), turn("assistant", "c")])
    with pytest.raises(RowError, match=r"Found '\\n\\nHuman:' in a message of role 'user'"):
        write(marked, "anthropic")
    with pytest.raises(RowError, match="one text, in which nothing says what was asked"):
        write(SFTExample(text="a", source="x:1"), "openai")


# Texts as people have them: empty, blank, other scripts, quotes, line ends, emoji, and a mark of a transcript.
TEXTS = st.one_of(
    st.sampled_from(["ü", "日本語", '"quoted"', "a\nb ", "😀", "\\n", "[{", "null"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(["", " ", "\u2028", "\n\nHuman: x"]),
)
NAMES = st.sampled_from(["f", "get_time"])
ARGUMENTS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.one_of(st.integers(), TEXTS, st.booleans(), st.none()), max_size=2
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    call: dict[str, Any] = {"type": "function", "function": {"name": draw(NAMES), "arguments": draw(ARGUMENTS)}}
    return {"id": "c1", **call} if draw(st.booleans()) else call


SPICES = ("marks", "calls", "tools", "roles", "kwargs", "several")
"""What makes a record hard to hold; most records have one of them or none, so that no other reason hides a loss."""
Spices = tuple[str, ...]


@st.composite
def answers(draw: st.DrawFn, spices: Spices) -> dict[str, Any]:
    message = turn("assistant", draw(TEXTS))
    if "calls" in spices and draw(st.booleans()):
        message["tool_calls"] = draw(st.lists(calls(), min_size=1, max_size=2))
        if draw(st.booleans()):
            message["content"] = ""
        if draw(st.booleans()):
            del message["content"]
    if "marks" in spices and draw(st.booleans()):
        message[UNTRAINED] = False
    return message


USERS = st.builds(turn, st.just("user"), TEXTS)
ASKING = st.one_of(
    USERS,
    st.builds(turn, st.sampled_from(["system", "developer", "assistant"]), TEXTS),
    st.builds(turn, st.just("tool"), TEXTS),
    st.builds(turn, st.just("tool"), TEXTS, tool_call_id=st.just("c1"), name=NAMES),
)


@st.composite
def prompts(draw: st.DrawFn, spices: Spices) -> list[dict[str, Any]]:
    asking = ASKING if "roles" in spices else USERS
    messages = [turn("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [draw(asking), draw(answers(spices))]
    return [*messages, draw(asking)]


@st.composite
def records(draw: st.DrawFn, kind: str) -> Record:
    """Records of all forms."""
    spices: Spices = draw(st.sampled_from([(), (), *((spice,) for spice in SPICES), SPICES]))
    one = answers(spices).map(lambda answer: [answer])
    asking = ASKING if "roles" in spices else USERS
    more_turns = st.tuples(answers(spices), asking, answers(spices)).map(list)
    several = st.one_of(one, more_turns) if "several" in spices else one
    more = {
        "tools": draw(st.sampled_from([[TOOL], [TOOL["function"]]])) if "tools" in spices else None,
        "chat_template_kwargs": {"think": True} if "kwargs" in spices else {},
        "source": "x:1",
    }
    is_text = draw(st.integers(0, 9)) == 9
    prompt = draw(TEXTS if is_text else prompts(spices))
    answer = TEXTS if is_text else several
    if kind == "preference":
        return PreferencePair(prompt=prompt, chosen=draw(answer), rejected=draw(answer), **more)
    if draw(st.booleans()):
        return SFTExample(prompt=prompt, completion=draw(answer), **more)
    if is_text:
        return SFTExample(text=prompt, **more)
    return SFTExample(messages=[*prompt, *draw(answer)], **more)


def meaning(record: Record) -> dict[str, Any]:
    """What a model could learn of a record, in one form: what is trained is marked, what says nothing is left out."""

    def plain(messages: list[dict[str, Any]], trained: list[int]) -> list[dict[str, Any]]:
        found = []
        for at, message in enumerate(messages):
            kept = {key: value for key, value in message.items() if key != UNTRAINED}
            if kept.get("tool_calls") and not kept.get("content"):
                kept.pop("content", None)
            found.append({**kept, "trained": at in trained})
        return found

    tools = [tool.get("function", tool) for tool in record.tools or []]
    row: dict[str, Any] = {"tools": tools, "kwargs": record.chat_template_kwargs}
    if isinstance(record, PreferencePair):
        for name in ("prompt", "chosen", "rejected"):
            value = getattr(record, name)
            if isinstance(value, list):
                value = plain(value, [] if name == "prompt" else trained_turns([{"role": "user"}, *value], 1))
            row[name] = value
        return row
    if record.text is not None or isinstance(record.prompt, str):
        return {**row, "text": (record.text, record.prompt, record.completion)}
    messages = record.messages or [*(record.prompt or ()), *(record.completion or ())]  # type: ignore[misc]
    num_prompt = None if record.messages else len(record.prompt or ())
    return {**row, "messages": plain(messages, trained_turns(messages, num_prompt))}


def is_valid(record: Record) -> bool:
    """Whether reading could have made this record."""
    kind = "preference" if isinstance(record, PreferencePair) else "sft"
    try:
        build_record(json.loads(json.dumps(to_row(record))), kind, record.source)  # type: ignore[arg-type]
    except RowError:
        return False
    return True


@pytest.mark.parametrize(("system", "kind"), [(name, kind) for name in SYSTEMS for kind in PROVIDERS[name].rows])
def test_a_record_comes_back_equal_from_the_rows_of_a_system_or_is_refused(system: str, kind: str) -> None:
    num_written = 0

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(records(kind).filter(is_valid))
    def check(record: Record) -> None:
        nonlocal num_written
        try:
            rows = write(record, system)
        except RowError:
            return
        num_written += 1
        assert [meaning(each) for each in read_back(rows, kind)] == [meaning(record)]

    check()
    assert num_written >= 5, "nearly all were refused, so this test says little"


def read_back(rows: list[dict[str, Any]], kind: Any) -> list[Record]:
    """The records of rows, read as the format that is recognised."""
    pairing = Pairing()
    found = []
    for row in json.loads(json.dumps(rows)):
        converted = convert(row, detect_format(row, kind), kind)
        assert converted is not None
        made = pairing.make(converted, "x:1", row) if kind == "preference" else [Pair(converted, "x:1", None)]
        found += [build_record(each.row, kind, "x:1")[0] for each in made]
    return found
