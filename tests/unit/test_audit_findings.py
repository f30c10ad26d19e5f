"""Count, share and examples of a finding agree, for every check: on rows that hold each defect."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from prefopt.config.choices import CheckName, LossOn
from prefopt.data.audit.check import MAX_EXAMPLES, Found
from prefopt.data.audit.control_tokens import COUNTS
from prefopt.data.audit.engine import READ_BY_THE_READER, load_check, run_checks
from prefopt.data.audit.tokens import Reader
from prefopt.data.records import PreferencePair, Record
from prefopt.process.terminal import Terminal
from prefopt.reports.audit import print_audit
from tests.audit_rows import chat, pair, pairs
from tests.unit.test_audit_page import audit, finding
from tests.unit.test_tokenize import CHATML, build_tokenizer

LONG = " ".join(f"word{number}" for number in range(40))
DEFECTS = pairs(
    ("one prompt", "the same", "the same"),
    ("another prompt", LONG, LONG.replace("word39", "end")),
    ("a third prompt", "an answer", ""),
    ("a fourth prompt", "first answer", "second answer"),
    ("a fourth prompt", "second answer", "first answer"),
    ("a fifth prompt", "an answer that comes twice", "no"),
    ("a fifth prompt", "an answer that comes twice", "no"),
    (f"What is {LONG}", f"It is {LONG}", f"Nobody knows {LONG[::-1]}"),
    (f"What is {LONG}", f"It is {LONG} too", f"Nobody knows {LONG[::-1]}"),
    ("Which prompt has leaked?", "this one", "none"),
    (f"How about {LONG}", "fine", "bad"),
    ("this is repeated", "this is repeated by chosen", "but not by rejected"),
    ("do something", "I'm sorry, but I can't do that.", "Done."),
    ("too long", "x " * 2000, "y"),
    ("two ends", "yes</s>no", "no"),
    ("Bitte um etwas", "Der Hund ging gestern Abend noch in den Garten, um dort zu schlafen.",
     "The dog went into the garden last night, and that is where it slept."),
    ("invisible", "a\u200bb", "c"),
    ("mojibake", "don\u00e2\u20ac\u2122t and won\u00e2\u20ac\u2122t", "c"),
    ("a key", "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5", "c"),
    ("an address", "Write to maria.huber@posteo.de", "c"),
)  # fmt: skip
HELD_OUT = pairs(("Which prompt has leaked?", "this", "none"), (f"How about {LONG} now", "fine", "bad"))


def told_by_words() -> list[Record]:
    """Pairs whose chosen answer says please, but for every tenth; and is longer."""
    draw = random.Random(0)
    rows: list[Record] = []
    for number in range(300):
        one, other = (" ".join(draw.choices([f"w{n}" for n in range(60)], k=12)) for _ in range(2))
        sides = (f"{one} please indeed", other)
        rows.append(pair(f"question number {number}", *(sides if number % 10 else sides[::-1]), line=100 + number))
    return rows


@cache
def found_in_text() -> dict[CheckName, Found]:
    held_out = [PreferencePair(each.prompt, each.chosen, each.rejected, None, {}, f"held:{line}")
                for line, each in enumerate(HELD_OUT) if isinstance(each, PreferencePair)]  # fmt: skip
    parts = {"bad": DEFECTS, "good": told_by_words()}
    train = [replace(row, slice=name, margin=1.0 if name == "good" else 0.0)
             for name, part in parts.items() for row in part if isinstance(row, PreferencePair)]  # fmt: skip
    rows: dict[str, Any] = {"train": train, "held_out": held_out}
    outcomes = run_checks(rows, kind="preference", reader=Reader(build_tokenizer(), 1024, LossOn.completions))
    return {name: outcome.found for name, outcome in outcomes.items() if outcome.found is not None}


@cache
def found_in_chats() -> dict[CheckName, Found]:
    rows = [chat("Be kind.", f"question {line}", "an answer", line) for line in range(10)]
    assert rows[3].messages is not None
    rows[3].messages.append(rows[3].messages[-1])
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    outcomes = run_checks({"train": rows}, kind="sft", reader=Reader(tokenizer, 1024, LossOn.completions))
    return {name: outcome.found for name, outcome in outcomes.items() if outcome.found is not None}


@pytest.mark.parametrize("name", [name for name in CheckName if name is not READ_BY_THE_READER])
def test_a_finding_whose_share_is_above_zero_names_rows(name: CheckName) -> None:
    check, _ = load_check(name, "preference", with_model=True)
    assert check is not None
    one = (found_in_chats() if name is CheckName.role_order else found_in_text())[name]
    assert one.share > 0, "the rows hold each defect"
    if check.is_of_whole:
        return
    assert one.count > 0
    assert 1 <= len(one.examples) <= MAX_EXAMPLES
    assert all(example.source.partition(":")[2].isdigit() for example in one.examples)


@pytest.mark.parametrize("name", [name for name in CheckName if name is not READ_BY_THE_READER])
def test_a_share_is_that_of_the_rows_that_are_counted(name: CheckName) -> None:
    check, _ = load_check(name, "preference", with_model=True)
    assert check is not None
    for found in (found_in_text(), found_in_chats()):
        if name in found and not check.is_of_whole and name is not CheckName.label_noise:  # there it is an estimate
            assert found[name].share == pytest.approx(found[name].count / found[name].num_rows)


def test_rows_that_tokenising_only_counts_are_named() -> None:
    tokenizer = build_tokenizer(adds_bos=True)
    rows = [pair("<s>p" if line % 7 == 0 else "p", "a</s>b" if line == 5 else "a", "b", line) for line in range(40)]
    outcomes = run_checks(
        {"train": rows}, kind="preference", reader=Reader(tokenizer, 99, LossOn.completions),
        only=[CheckName.control_tokens],
    )  # fmt: skip
    one = outcomes[CheckName.control_tokens].found
    assert one is not None
    assert one.rows["train"].tolist() == [0, 5, 7, 14, 21, 28, 35]
    assert {example.detail for example in one.examples} >= {COUNTS["num_double_bos"], COUNTS["num_extra_eos_skipped"]}


def test_a_row_that_cannot_be_tokenised_hides_no_other() -> None:
    tokenizer = build_tokenizer(adds_bos=False)
    rows = [pair("" if line == 3 else "p", "a</s>b" if line in (2, 6) else "a", "b", line) for line in range(8)]
    reader = Reader(tokenizer, 99, LossOn.completions)
    assert "num_extra_eos_skipped" in COUNTS
    assert reader.find_rows(rows, "num_extra_eos_skipped") == [2, 6]
    one = run_checks({"train": rows}, kind="preference", reader=reader, only=[CheckName.control_tokens])
    found = one[CheckName.control_tokens].found
    assert found is not None
    assert found.rows["train"].tolist() == [2, 3, 6]


def test_a_finding_about_the_data_as_a_whole_is_printed_without_a_number_of_rows(capsys: Any) -> None:
    print_audit(audit(finding("separability", 0.95, count=0)), Terminal())
    printed = capsys.readouterr().out
    assert "separability  accuracy: at least 95.00 %, limit 90 %" in printed


def test_nearly_identical_pairs_are_named_also_if_all_of_them_are_identical() -> None:
    outcomes = run_checks({"train": DEFECTS[:1]}, kind="preference", only=[CheckName.near_identical])
    one = outcomes[CheckName.near_identical].found
    assert one is not None
    assert (one.count, [example.source for example in one.examples]) == (1, ["rows.jsonl:1"])
