"""The fast ways of the audit's checks against slow ones that look at each row by itself."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.audit import control_characters, refusal
from prefopt.data.audit.check import Chunk, Texts
from prefopt.data.audit.contradictory import without_blanks
from prefopt.data.audit.refusal import CLOSINGS, HINT, REFUSES
from prefopt.data.audit.role_order import describe_disorder, find_disorder
from prefopt.data.messages import Message, trained_turns
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.split import normal, prompt_keys
from tests.audit_rows import pair

PHRASES = st.from_regex(REFUSES) | st.sampled_from(CLOSINGS)
SPELL: dict[str, Callable[[str], str]] = {
    "small": str,
    "capital": str.upper,
    "typographic": lambda text: text.replace("'", "\u2019"),
    "Turkish": lambda text: text.replace("i", "\u0130"),
    "Kelvin": lambda text: text.replace("k", "\u212a"),
    "ends": lambda text: f"{'x' * (refusal.HEAD - len(text) - 1)} {text}{'x' * refusal.TAIL}{text}",
}
ANSWERS = st.lists(PHRASES | st.text(max_size=8) | st.just("\n\x00\n"), max_size=4).map(" ".join)
ANSWERS = st.builds(lambda text, spell: SPELL[spell](text), ANSWERS, st.sampled_from([*SPELL]))


@pytest.mark.parametrize("spell", SPELL.values(), ids=[*SPELL])
@settings(max_examples=200, deadline=None)
@given(text=PHRASES | st.sampled_from(["as an ai", "sorry but i", "let me know if you have any"]))
def test_each_refusal_and_each_closing_has_the_hint(text: str, spell: Callable[[str], str]) -> None:
    written = spell(text)
    assert Texts([written]).rows_with(HINT) == [0] or not (refusal.refuses(written) or refusal.closes(written))


@settings(max_examples=200, deadline=None)
@given(st.lists(ANSWERS, max_size=6))
def test_refusals_are_found_as_in_each_text_by_itself(texts: list[str]) -> None:
    rows = [pair("p", text, text[::-1], line) for line, text in enumerate(texts)]
    found = refusal.find_refusals(Chunk(split="train", start=0, records=rows))
    for side, (refusing, closing) in found.items():
        answers = [getattr(row, side) for row in rows]
        assert refusing.tolist() == [row for row, text in enumerate(answers) if refusal.refuses(text)]
        assert closing.tolist() == [row for row, text in enumerate(answers) if refusal.closes(text)]


TEXTS = st.lists(
    st.text(st.sampled_from("ab \n\r\t\x00\x0b\x1c\x7f\x85\xa0\u200b\u2028\ufeff\u0e01"), max_size=6), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_control_characters_are_found_as_in_each_text_by_itself(texts: list[str]) -> None:
    rows = [pair(text, "a", text, line) for line, text in enumerate(texts)]
    found = control_characters.examine(Chunk(split="train", start=0, records=rows))
    each = [control_characters.IN_UNICODE.findall(text) for text in texts]
    assert found.rows.tolist() == [row for row, characters in enumerate(each) if characters]
    assert sum(found.counts.values()) == 2 * sum(map(len, each))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_blanks_are_stripped_as_from_each_text_by_itself(texts: list[str]) -> None:
    slow = ["".join(letter for letter in text if letter not in " \n\t\r").encode() for text in texts]
    assert without_blanks(Texts(texts)) == slow
    assert [*map(normal, texts)] == [" ".join(text.split()) for text in texts]


ROLES = ["system", "user", "assistant", "tool"]
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": 1}, "strict": True}}


@st.composite
def messages(draw: st.DrawFn, roles: list[str] = ROLES) -> list[Message]:
    made: list[Message] = []
    for role in draw(st.lists(st.sampled_from(roles), min_size=1, max_size=4)):
        message: Message = {"role": role, "content": draw(st.sampled_from(["", "a  b", "\u00e9\n", '"']))}
        if role == "assistant":
            message |= draw(st.sampled_from([{}, {"tool_calls": [CALL]}, {"train": False}, {"name": "n"}]))
            if "tool_calls" in message and draw(st.booleans()):
                del message["content"]
        made.append(message)
    return made


@st.composite
def records(draw: st.DrawFn) -> Record:
    tools = draw(st.sampled_from([None, [{"name": "t"}, {"name": "s"}]]))
    kind = draw(st.sampled_from(["pair", "completion", "messages", "text pair", "text"]))
    if kind == "pair":
        return PreferencePair(*(draw(messages()) for _ in range(3)), tools, {}, "rows.jsonl:1")
    if kind == "completion":
        return SFTExample(prompt=draw(messages()), completion=draw(messages()), tools=tools, source="rows.jsonl:1")
    if kind == "messages":
        return SFTExample(messages=draw(messages()), tools=tools, source="rows.jsonl:1")
    if kind == "text pair":
        return PreferencePair("a  b", "c", "d", tools, {}, "rows.jsonl:1")
    return SFTExample(text="a\nb", tools=tools, source="rows.jsonl:1")


def slow_chats(record: Record) -> list[list[Message]]:
    if isinstance(record, SFTExample):
        if record.messages is not None:
            return [record.messages]
        return [] if record.prompt is None else [[*record.prompt, *record.completion]]  # type: ignore[list-item,misc]
    if isinstance(record.prompt, str):
        return []
    sides: list[Any] = [record.chosen, record.rejected]
    return [[*record.prompt, *side] for side in sides if side is sides[0] or max(map(len, sides)) > 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4))
def test_disorder_is_found_as_in_each_chat_by_itself(rows: list[Record]) -> None:
    faults = []
    for row in rows:
        chats = [["call" if each.get("tool_calls") else each["role"] for each in chat] for chat in slow_chats(row)]
        faults.append([fault for fault in map(describe_disorder, chats) if fault])
    num_chats, found, told = find_disorder(Chunk(split="train", start=0, records=rows))
    assert num_chats == sum(map(bool, map(slow_chats, rows)))
    assert found.tolist() == [row for row, each in enumerate(faults) if each]
    assert told == [each[0] for each in faults if each]


def slow_keys(record: Record) -> list[bytes]:
    """The digests as their docstring says: of the JSON of all messages before each trained turn, and the tools."""

    def spell(value: object) -> str:
        return json.dumps(value, sort_keys=True)

    def identity(message: Message) -> dict[str, Any]:
        said = {"content": " ".join(message.get("content", "").split()), "role": message["role"]}
        calls = [call["function"] for call in message.get("tool_calls", [])]
        called = [spell({key: call[key] for key in ("name", "arguments")}) for call in calls]
        return said | ({"tool_calls": called} if called else {})

    tools = spell(sorted(record.tools, key=spell)) if record.tools else ""
    if isinstance(record.prompt, str) or getattr(record, "text", None) is not None:
        said: list[Any] = [" ".join(str(record.prompt or getattr(record, "text", "")).split())]
    else:
        said = []
        for number, chat in enumerate(slow_chats(record)):
            if isinstance(record, SFTExample) and record.messages is not None:
                turns = trained_turns(chat)
            else:
                start = len(record.prompt or ())
                turns = [start, *trained_turns(chat, start + 1)]
                one_answer = isinstance(record, PreferencePair) and number == 1 and len(record.rejected) == 1
                turns = [] if one_answer else turns
            said += [[*map(identity, chat[:turn])] for turn in turns]
    return [hashlib.sha256(json.dumps([each, tools]).encode()).digest() for each in said]


@settings(max_examples=300, deadline=None)
@given(records())
def test_digests_of_prompts_are_those_of_their_json(record: Record) -> None:
    assert [*prompt_keys(record)] == slow_keys(record)
