"""Which prompts are held out: by prompt and not by row, the same on every machine and in every row order."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.data.messages import Content, Message, trained_turns
from prefopt.data.records import PreferencePair, Record


class Overlap(NamedTuple):
    """A training record whose prompt is also held out, and the first held-out record with that prompt."""

    train: Record
    held_out: Record


def prompt_key(record: Record) -> bytes:
    """Returns a digest of the record's prompt; records with equal keys must stay on one side of a split.

    Of a message who says what counts, and which tools it calls with what; ids, times and other keys do not. Runs of
    whitespace count as one blank. The system prompt and the tools, in any order, are part of the prompt. Of a
    conversation (`messages`) it is all before the first turn that is trained, also a greeting and turns that are
    marked as not trained.
    """
    tools = json.dumps(sorted(record.tools, key=_spell), sort_keys=True, default=str) if record.tools else ""
    return hashlib.sha256(json.dumps([_normalise(_prompt(record)), tools]).encode()).digest()


def split_by_prompt(records: Sequence[Record], *, fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Returns training and held-out records, both in their order in `records`.

    Exactly `round(fraction * number of prompts)` prompts are held out, at least one if `fraction` > 0. Which ones
    depends on `seed` and the prompts alone.

    Args:
        records: What is split.
        fraction: Share of prompts to hold out, in [0, 1).
        seed: Chooses the prompts.
    """
    keys = [prompt_key(record) for record in records]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:".encode() + key).digest())
    num_held_out = max(round(fraction * len(ranked)), 1) if fraction > 0 else 0
    chosen = set(ranked[:num_held_out])
    train = [record for record, key in zip(records, keys, strict=True) if key not in chosen]
    held_out = [record for record, key in zip(records, keys, strict=True) if key in chosen]
    return train, held_out


def find_overlap(train: Sequence[Record], held_out: Sequence[Record]) -> list[Overlap]:
    """Returns every training record whose prompt occurs in `held_out`, in the order of `train`."""
    first: dict[bytes, Record] = {}
    for record in held_out:
        first.setdefault(prompt_key(record), record)
    pairs = ((record, first.get(prompt_key(record))) for record in train)
    return [Overlap(record, match) for record, match in pairs if match is not None]


def _prompt(record: Record) -> Content:
    if isinstance(record, PreferencePair):
        return record.prompt
    if record.messages is not None:
        return record.messages[: trained_turns(record.messages)[0]]
    prompt = record.text if record.prompt is None else record.prompt
    assert prompt is not None, "a demonstration has a prompt, messages or text"
    return prompt


def _normalise(content: Content) -> str | list[Message]:
    if isinstance(content, str):
        return " ".join(content.split())
    return [_identity(message) for message in content]


def _identity(message: Message) -> Message:
    said = {"content": " ".join(message.get("content", "").split()), "role": message["role"]}
    functions = [call.get("function", call) for call in message.get("tool_calls", ())]
    calls = [_spell({key: each.get(key) for key in ("name", "arguments")}) for each in functions]
    return {**said, "tool_calls": calls} if calls else said


def _spell(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
