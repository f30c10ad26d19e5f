"""Pairs that say the opposite of each other: the same prompt and the same two answers, the other one preferred."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.audit.check import BETWEEN, Check, Chunk, Example, Found, Sides, Texts, hashes, say
from prefopt.data.messages import Content
from prefopt.data.records import PreferencePair, Record

MIX = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]


def digest(chunk: Chunk) -> tuple[Keys, Keys]:
    """Returns a digest of each pair, and the digest that a pair with swapped sides would have.

    Whitespace does not count; the system prompt, the tools and the roles do. Of an identical pair both are equal.
    """
    keys, rows = chunk.prompt_keys
    prompts = keys[np.searchsorted(rows, chunk.start + np.arange(len(chunk)))]
    roles = [
        (form.roles[-2:] or ((), ())) if form.further is None else _roles(record)
        for form, record in zip(chunk.forms, chunk.records, strict=True)
    ]
    chosen, rejected = (
        hashes([(text, said[side]) for text, said in zip(without_blanks(texts), roles, strict=True)])
        for side, texts in enumerate((chunk.chosen, chunk.rejected))
    )
    return _combine(prompts, chosen, rejected), _combine(prompts, rejected, chosen)


def without_blanks(texts: Texts) -> list[bytes]:
    """Returns each text without whitespace, which takes half as long as to replace each run of it by a blank."""
    found = _strip(texts.joined).split(_strip(BETWEEN))
    return (
        found if len(found) == len(texts.each) else [*map(_strip, texts.each)]
    )  # a text may hold what stands between


def _strip(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").translate(None, b" \n\t\r")


def _roles(record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns for each side what its messages have besides text: roles, and tool calls as JSON."""
    assert isinstance(record, PreferencePair), "demonstrations have one side"
    return _roles_of(record.chosen), _roles_of(record.rejected)


def _roles_of(content: Content) -> tuple[str, ...]:
    if isinstance(content, str):
        return ()
    calls = [message["tool_calls"] for message in content if "tool_calls" in message]
    said = [json.dumps(calls, sort_keys=True, default=str)] if calls else []
    return (*(message["role"] for message in content), *said)


def _combine(*parts: Keys) -> Keys:
    combined = np.zeros_like(parts[0])
    for part in parts:
        combined = (combined ^ part) * MIX
        combined ^= combined >> np.uint64(32)
    return combined


def conclude(seen: Sequence[tuple[str, int, tuple[Keys, Keys]]], sides: Sides) -> Found:
    own = np.concatenate([keys for _, _, (keys, _) in seen])
    swapped = np.concatenate([keys for _, _, (_, keys) in seen])
    is_contradicted = np.isin(swapped, own) & (own != swapped)
    places = [(split, start + np.arange(len(keys))) for split, start, (keys, _) in seen]
    splits = [split for split, rows in places for _ in range(len(rows))] if is_contradicted.any() else []
    order = np.concatenate([rows for _, rows in places])
    at = np.flatnonzero(is_contradicted)
    rows = {split: order[[i for i in at if splits[i] == split]] for split in dict.fromkeys(splits[i] for i in at)}
    first: dict[int, int] = {}
    for place in reversed(at.tolist()):
        first[int(own[place])] = place
    opposites = [(place, first[int(swapped[place])]) for place in at.tolist()[:1000]]
    shown = [(place, other) for place, other in opposites if place < other][:5]
    return Found(
        rows=rows,
        num_rows=len(own),
        share=len(at) / len(own),
        summary=f"{say(len(at), 'pair')} with the answers of another pair of the same prompt, preferred the other way",
        remedy="Decide which is right, and drop the other; prefopt audit --fix drops both.",
        examples=[
            Example(
                source=sides.source(splits[place], int(order[place])),
                detail=f"contradicts {sides.source(splits[other], int(order[other]))}",
            )
            for place, other in shown
        ],
    )


CHECK = Check(kinds=("preference",), examine=digest, conclude=conclude)
