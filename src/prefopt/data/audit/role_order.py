"""Chats whose turns are in an order that chat templates refuse or that no model has been trained on."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import MAX_EXAMPLES, Check, Chunk, Example, Found, Sides, by_split, say
from prefopt.data.messages import Message
from prefopt.data.records import PreferencePair, Record

FIRST = ("system", "developer")
Rows = NDArray[np.int64]
Seen = tuple[int, Rows, list[str]]


def find_disorder(chunk: Chunk) -> Seen:
    """Returns the number of chats, the rows in disorder, and what is wrong with each."""
    known: dict[tuple[str, ...], str] = {}
    num_chats, rows, faults = 0, [], []
    for row, record in enumerate(chunk.records):
        chats = [tuple(_turn(message) for message in chat) for chat in _chats(record)]
        num_chats += bool(chats)
        for turns in chats:
            if turns not in known:
                known[turns] = describe_disorder(turns)
            if known[turns]:
                rows.append(chunk.start + row)
                faults.append(known[turns])
                break
    return num_chats, np.array(rows, np.int64), faults


def _chats(record: Record) -> Iterator[list[Message]]:
    """Yields the whole chats of a record: of a pair, one for each side if they have different turns."""
    if isinstance(record, PreferencePair):
        if isinstance(record.prompt, list):
            yield [*record.prompt, *record.chosen]
            if len(record.rejected) > 1 or len(record.chosen) > 1:
                yield [*record.prompt, *record.rejected]
    elif record.messages is not None:
        yield record.messages
    elif isinstance(record.prompt, list):
        yield [*record.prompt, *(record.completion or ())]


def _turn(message: Message) -> str:
    return "call" if message.get("tool_calls") else str(message["role"])


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
