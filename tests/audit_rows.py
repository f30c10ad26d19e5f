"""Rows to audit, and one check run on them as the engine does, in chunks of any size."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from prefopt.data.audit.check import Check, Chunk, Found, Sides
from prefopt.data.records import PreferencePair, Record, SFTExample


def pair(prompt: str = "Hi", chosen: str = "Good.", rejected: str = "Bad.", line: int = 1) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, None, {}, f"rows.jsonl:{line}")


def chat(system: str, question: str, answer: str, line: int = 1) -> SFTExample:
    turns = {"system": system, "user": question, "assistant": answer}
    messages: list[Any] = [{"role": role, "content": content} for role, content in turns.items()]
    return SFTExample(messages=messages, source=f"rows.jsonl:{line}")


def pairs(*texts: tuple[str, str, str]) -> list[Record]:
    return [pair(*each, line=line) for line, each in enumerate(texts, start=1)]


def run(
    name: str, train: Sequence[Record], *, chunk_rows: int = 2000, **others: Sequence[Record]
) -> Found | str | None:
    """Runs one check, as the engine does."""
    check: Check[Any] = import_module(f"prefopt.data.audit.{name}").CHECK
    splits = {"train": train, **others}
    seen = [
        (split, start, check.examine(Chunk(split=split, start=start, records=rows[start : start + chunk_rows])))
        for split, rows in splits.items()
        for start in range(0, len(rows), chunk_rows)
    ]
    return check.conclude(seen, Sides(splits))


def found(name: str, train: Sequence[Record], **options: Any) -> Found:
    finding = run(name, train, **options)
    assert isinstance(finding, Found), f"{name} finds nothing to look at"
    return finding


def rows_of(finding: Found, split: str = "train") -> list[int]:
    return list(finding.rows[split].tolist()) if split in finding.rows else []
