"""Held-out prompts that training has seen, against counting them by hand."""

import logging
from typing import Any

import pytest

from prefopt.config.choices import CheckName
from prefopt.config.schema import DataConfig
from prefopt.data.audit.engine import run_checks
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.evaluation import overlap
from prefopt.evaluation.overlap import measure_overlap, recall_overlap

CONFIG = DataConfig(train="unread.jsonl")
PROMPTS = [
    f"Please explain to customer number {n} of shop {7 * n} why the parcel with item {n * n} is late"
    for n in range(40)
]


def say(role: str, content: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


def as_pair(prompt: str, line: int) -> Record:
    return PreferencePair(
        say("user", prompt), say("assistant", f"yes {line}"), say("assistant", "no"), None, {}, f"p:{line}"
    )


def as_text_pair(prompt: str, line: int) -> Record:
    return PreferencePair(prompt, f"yes {line}", "no", None, {}, f"t:{line}")


def as_completion(prompt: str, line: int) -> Record:
    return SFTExample(prompt=say("user", prompt), completion=say("assistant", f"yes {line}"), source=f"c:{line}")


def as_messages(prompt: str, line: int) -> Record:
    return SFTExample(messages=[*say("user", prompt), *say("assistant", f"yes {line}")], source=f"m:{line}")


KINDS = [as_pair, as_text_pair, as_completion, as_messages]


@pytest.mark.parametrize("held_out_as", KINDS)
@pytest.mark.parametrize("train_as", KINDS)
def test_prompts_are_found_word_for_word_and_nearly_in_every_kind_and_form_of_rows(train_as, held_out_as):
    train = [train_as(prompt, line) for line, prompt in enumerate(PROMPTS[:30])]
    exact = [*PROMPTS[:5], f"  {PROMPTS[5]}\n"]
    near = [f"{prompt} please" for prompt in PROMPTS[10:14]]
    new = ["Write a poem", "Which of the two long roads to the old town on the hill is the shorter one"]
    held_out = [held_out_as(prompt, line) for line, prompt in enumerate([*exact, *near, *new])]
    assert measure_overlap(train, held_out, CONFIG) == {"prompts": 12, "exact": 6, "near": 4}


def test_a_prompt_counts_once_however_many_rows_it_has_and_in_how_many_ways_it_leaks():
    train = [as_pair(prompt, line) for line, prompt in enumerate([PROMPTS[0]] * 3 + [f"{PROMPTS[0]} please"])]
    near = f"{PROMPTS[0]} please now"
    held_out = [as_pair(prompt, line) for line, prompt in enumerate([PROMPTS[0]] * 4 + [near] * 5 + ["Hi"] * 6)]
    assert measure_overlap(train, held_out, CONFIG) == {"prompts": 3, "exact": 1, "near": 1}


def test_a_later_turn_that_is_asked_in_training_is_an_overlap():
    talk = [*say("user", "Hi"), *say("assistant", "Hello"), *say("user", PROMPTS[0])]
    train = [SFTExample(messages=[*talk, *say("assistant", "yes")], source="m:1")]
    held_out = [SFTExample(prompt=talk, completion=say("assistant", "no"), source="c:1")]
    assert measure_overlap(train, held_out, CONFIG) == {"prompts": 1, "exact": 1, "near": 0}


def test_nearly_is_what_the_audit_calls_nearly():
    train = [as_pair(prompt, line) for line, prompt in enumerate(PROMPTS)]
    held_out = [as_pair(f"{prompt}{' or so' * n}", n) for n, prompt in enumerate(PROMPTS[1:], start=1)]
    check = CheckName.near_leakage
    found = run_checks({"train": train, "held_out": held_out}, kind="preference", only=[check])[check].found
    assert measure_overlap(train, held_out, CONFIG)["near"] == found.count > 0


def test_without_the_package_near_prompts_are_not_known_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr("prefopt.data.audit.engine.is_installed", lambda package: False)
    caplog.set_level(logging.INFO, "prefopt")
    pairs = [as_pair(prompt, line) for line, prompt in enumerate(PROMPTS)]
    assert measure_overlap(pairs[:30], pairs[20:], CONFIG) == {"prompts": 20, "exact": 10, "near": None}
    assert caplog.text.count("pip install 'prefopt[audit]'") == 1


def test_rows_that_were_compared_before_are_not_compared_again_and_others_are(monkeypatch, tmp_path):
    monkeypatch.setattr(overlap, "cache_folder", lambda: tmp_path)
    calls = []

    def measure() -> overlap.Overlap:
        calls.append(1)
        return {"prompts": 3, "exact": len(calls), "near": None}

    def recall(*digests: str | None) -> int | None:
        return recall_overlap(digests, CONFIG, measure)["exact"]

    assert [recall("a", "t", "b"), recall("a", "t", "b"), recall("a", "t", "c"), recall("x", "t", "b")] == [1, 1, 2, 3]
    assert [recall("a", None, "b"), recall("a", None, "b")] == [4, 5], "without a digest nothing is kept"
    (path,) = [file for file in (tmp_path / "overlap").iterdir() if '"exact": 1' in file.read_text()]
    path.write_text("{")
    assert recall("a", "t", "b") == 6, "a damaged file is measured anew"
