"""Chats whose turns are in an order that chat templates refuse or that no model has been trained on."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, by_split, say
from prefopt.data.records import Record, message_fields

FIRST = ("system", "developer")
Rows = NDArray[np.int64]
Seen = tuple[int, Rows, list[str]]
Turns = tuple[tuple[str, ...], ...]
"""Of each field of messages: a role for each message, or `call` for a tool call of the assistant."""


def find_disorder(chunk: Chunk) -> Seen:
    """Returns the number of chats, the rows in disorder, and what is wrong with each."""
    known: dict[Turns, str] = {(): ""}
    num_chats, rows, faults = 0, [], []
    for row, (record, form) in enumerate(zip(chunk.records, chunk.forms, strict=True)):
        turns = form.roles if form.further is None else _turns(record)
        if turns not in known:
            known[turns] = next(filter(None, map(describe_disorder, _chats(turns))), "")
        num_chats += bool(turns)
        if known[turns]:
            rows.append(chunk.start + row)
            faults.append(known[turns])
    return num_chats, np.array(rows, np.int64), faults


def _turns(record: Record) -> Turns:
    """Returns the turns of each field of messages."""
    return tuple(
        tuple("call" if message.get("tool_calls") else str(message["role"]) for message in chat)
        for chat in message_fields(record).values()
    )


def _chats(turns: Turns) -> Iterator[Sequence[str]]:
    """Yields the turns of whole chats: of a pair, one for each side if they have different turns."""
    before, *answers = turns
    if not answers:
        yield before
    for number, answer in enumerate(answers):
        if number == 0 or any(len(each) > 1 for each in answers):
            yield before + answer


def describe_disorder(turns: Sequence[str]) -> str:
    """Returns what is wrong with turns, each a role, or `call` for a tool call of the assistant; "" if nothing is."""
    for place, turn in enumerate(turns):
        before = turns[place - 1] if place else ""
        if turn in FIRST and before not in ("", *FIRST):
            return f"a {turn} message after the first turn"
        if turn == before and turn in ("user", "assistant"):
            return f"two turns of the {turn} in a row"
        if turn == "tool" and before not in ("call", "tool"):
            return "a tool's result without a call"
    spoken = [turn for turn in turns if turn not in FIRST]
    return "begins with the assistant" if spoken and spoken[0] in ("assistant", "call") else ""


def conclude(seen: Sequence[tuple[str, int, Seen]], sides: Sides) -> Found | None:
    num_chats = sum(number for _, _, (number, _, _) in seen)
    if not num_chats:
        return None
    rows = by_split([(split, found) for split, _, (_, found, _) in seen])
    faults = [
        (split, row, fault)
        for split, _, (_, found, said) in seen
        for row, fault in zip(found.tolist(), said, strict=True)
    ]
    kinds = Counter(fault for _, _, fault in faults).most_common()
    told = ", ".join(f"{count:,} {fault}" if len(kinds) > 1 else fault for fault, count in kinds)
    return Found(
        rows=rows,
        num_rows=num_chats,
        share=len(faults) / num_chats,
        summary=f"{say(len(faults), 'chat')} with turns out of order" + (f": {told}" if told else ""),
        remedy="Merge or drop these turns; some chat templates refuse them. prefopt show renders one: --row <number>.",
        examples=[
            Example(source=sides.source(split, row), detail=fault) for split, row, fault in faults[:MAX_EXAMPLES]
        ],
        values={"faults": dict(kinds)},
    )


CHECK = Check(examine=find_disorder, conclude=conclude)
