"""Training and held-out split by prompt, not by row; it is the same on every machine and in every row order."""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from prefopt.data.messages import Message, trained_turns
from prefopt.data.records import Record, SFTExample
from prefopt.data.table import Table

NO_TOOLS = b', ""]'
"""End of what is digested of a prompt without tools."""


class Overlap(NamedTuple):
    """A training record whose prompt is also held out, and the first held-out record with that prompt."""

    train: Record
    held_out: Record


def prompt_key(record: Record) -> bytes:
    """Returns a digest of the record's prompt: everything before its first trained turn."""
    return next(prompt_keys(record))


def prompt_keys(record: Record) -> Iterator[bytes]:
    """Yields, for each trained turn, a digest of everything before it.

    Records that share a digest stay on the same side of a split. The first digest is that of the record's prompt,
    which for a conversation (`messages`) includes a greeting and turns that are marked as not trained. More digests
    follow if a conversation or completion has several trained turns.

    A digest covers the role and content of each message and the names and arguments of its tool calls, but no ids,
    times or other keys. Runs of whitespace count as one blank. The system prompt and the tools, in any order, are part
    of the prompt.
    """
    end = NO_TOOLS
    if record.tools:
        tools = json.dumps(sorted(record.tools, key=_spell), sort_keys=True, default=str)
        end = f", {json.dumps(tools)}]".encode()
    text = record.text if isinstance(record, SFTExample) and record.text is not None else record.prompt
    if isinstance(text, str):
        yield hashlib.sha256(b"[" + json.dumps(normal(text)).encode() + end).digest()
        return
    for messages, turns in _conversations(record):
        digest = hashlib.sha256(b"[[")
        start = 0
        for turn in turns:
            said = ", ".join(map(_identity, messages[start:turn]))
            digest.update(f", {said}".encode() if start else said.encode())
            whole = digest.copy()
            whole.update(b"]" + end)
            yield whole.digest()
            start = turn


def _conversations(record: Record) -> Iterator[tuple[list[Message], list[int]]]:
    """Yields each conversation of a record of messages, and the indices of messages before which a prompt ends.

    What follows its last prompt may be missing.
    """
    if isinstance(record, SFTExample) and record.messages is not None:
        yield record.messages, trained_turns(record.messages)
        return
    prompt: Any = record.prompt
    completions: list[Any] = (
        [record.completion] if isinstance(record, SFTExample) else [record.chosen, record.rejected]
    )
    for number, completion in enumerate(completions):
        if len(completion) > 1:
            messages = [*prompt, *completion]
            yield messages, [len(prompt), *trained_turns(messages, len(prompt) + 1)]
        elif number == 0:  # one rejected message has the same prompt as chosen
            yield prompt, [len(prompt)]


def split_by_prompt(records: Sequence[Record], *, fraction: float, seed: int) -> tuple[Table[Record], Table[Record]]:
    """Returns training and held-out records, both in the order of `records`.

    Exactly `round(fraction * number of prompts)` prompts are held out, at least one if `fraction` > 0. The choice
    depends on `seed` and the prompts alone. Prompts that occur in the same conversation count as one.

    Args:
        records: The records to split.
        fraction: Share of prompts to hold out, in [0, 1).
        seed: Seed of the choice.
    """
    table = Table.of(records)
    keys = linked_prompts(table)
    groups = set(keys)
    num_held_out = max(round(fraction * len(groups)), 1) if fraction > 0 else 0
    start = hashlib.sha256(f"{seed}:".encode())

    def rank(key: bytes) -> bytes:
        digest = start.copy()
        digest.update(key)
        return digest.digest()

    chosen = set(heapq.nsmallest(num_held_out, groups, key=rank))
    is_held_out = np.fromiter((key in chosen for key in keys), bool, len(keys))
    return table.select(~is_held_out), table.select(is_held_out)


def nested_subsets(records: Sequence[Record], shares: Sequence[float], *, seed: int) -> list[Table[Record]]:
    """Returns for each share the records of so many prompts, in the order of `records`.

    A larger share has all prompts of a smaller one. As in a split, prompts that occur in the same conversation count
    as one, and the choice depends on `seed` and the prompts alone.

    Args:
        records: The records to choose from.
        shares: Shares of the prompts, in (0, 1]; of each, at least one prompt is chosen.
        seed: Seed of the choice; it is independent of a split's with the same seed.
    """
    table = Table.of(records)
    keys = linked_prompts(table)
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"subset {seed}:".encode() + key).digest())
    place = {key: rank for rank, key in enumerate(ranked)}
    ranks = np.fromiter((place[key] for key in keys), np.int64, len(keys))
    return [table.select(ranks < max(round(share * len(ranked)), 1)) for share in shares]


def number_prompts(records: Sequence[Record]) -> list[int]:
    """Returns for each record the number of its prompt; those of prompts in the same conversation are equal."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in linked_prompts(records)]


def linked_prompts(records: Sequence[Record]) -> list[bytes]:
    """Returns for each record a key of its group: records that share any digest of `prompt_keys` are in one group.

    The groups are found by union-find.
    """
    first = []
    above: dict[bytes, bytes] = {}  # parent in its union-find tree of each key that has one

    def top(key: bytes) -> bytes:
        while (parent := above.get(key, key)) != key:
            above[key] = key = above.get(parent, parent)
        return key

    keys = Table.of(records).map_parts(lambda part: [[*prompt_keys(record)] for record in part], doing="reading")
    for key, *later in chain.from_iterable(keys):
        first.append(key)
        for other in later:
            if (upper := top(other)) != (lower := top(key)):
                above[upper] = lower
    if not above:
        return first
    groups = [top(key) for key in first]
    least: dict[bytes, bytes] = {}  # least key of each group, which does not depend on the order of rows
    for group, key in zip(groups, first, strict=True):
        least[group] = min(least.get(group, key), key)
    return [least[group] for group in groups]


def find_overlap(train: Sequence[Record], held_out: Sequence[Record]) -> list[Overlap]:
    """Returns each training record that shares a digest of `prompt_keys` with `held_out`, in the order of `train`."""
    return [Overlap(train[row], held_out[other]) for row, other in find_overlapping_rows(train, held_out)]


def find_overlapping_rows(train: Sequence[Record], held_out: Sequence[Record]) -> list[tuple[int, int]]:
    """Returns the rows of `find_overlap` by their places: in `train`, and of the first one in `held_out`."""
    first: dict[bytes, int] = {}
    for row, record in enumerate(held_out):
        for key in prompt_keys(record):
            first.setdefault(key, row)
    matches = (
        (row, next((first[key] for key in prompt_keys(record) if key in first), None))
        for row, record in enumerate(train)
    )
    return [(row, match) for row, match in matches if match is not None]


def _identity(message: Message) -> str:
    """Returns as JSON text the parts of a message that identify it: role, content and tool calls."""
    said = json.dumps(normal(message.get("content", "")))
    called = ""
    if message.get("tool_calls"):
        functions = [call.get("function", call) for call in message["tool_calls"]]
        calls = [_spell({key: each.get(key) for key in ("name", "arguments")}) for each in functions]
        called = f', "tool_calls": {json.dumps(calls)}'
    return f'{{"content": {said}, "role": "{message["role"]}"{called}}}'


def normal(text: str) -> str:
    """Returns text with runs of whitespace as one blank, and none at its ends."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # a blank is all the whitespace that it has
    return " ".join(text.split())


def _spell(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
