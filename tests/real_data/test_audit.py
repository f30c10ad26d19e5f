"""What the audit finds in public data sets: the counts of a plain validator that was written independently of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.audit import main as audit

COUNTS = {
    "ultrafeedback_1k_train.jsonl.gz": {
        "duplicate": 0, "identical": 4, "contradictory": 0, "near_identical": 6, "empty": 2, "length_bias": 0.552,
    },
    "ultrafeedback_200_eval.jsonl": {
        "duplicate": 0, "identical": 1, "contradictory": 0, "near_identical": 2, "empty": 0, "length_bias": 0.455,
    },
    "orca_dpo_openai_format_validation.jsonl.gz": {
        "duplicate": 0, "identical": 0, "contradictory": 0, "near_identical": 0, "empty": 0, "length_bias": 0.183,
    },
    "llamafactory_dpo_en_demo.json.gz": {
        "duplicate": 5, "identical": 0, "contradictory": 0, "near_identical": 0, "empty": 0, "length_bias": 0.437,
    },
}  # fmt: skip
"""Data set -> check -> its count; of the length bias, the share of pairs with the longer answer chosen."""


def findings(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    audit([*argv, "--json"])
    return {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["checks"]}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_an_independent_validator(
    name: str, shared_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys, str(shared_file(name)))
    expected = dict(COUNTS[name])
    assert found["length_bias"]["share"] == pytest.approx(expected.pop("length_bias"), abs=5e-4)
    assert {check: found[check]["count"] for check in expected} == expected


def test_no_prompt_of_ultrafeedback_is_on_both_sides_and_few_are_covered(
    shared_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = (
        shared_file(name) for name in ("ultrafeedback_1k_train.jsonl.gz", "ultrafeedback_200_eval.jsonl")
    )
    found = findings(capsys, str(train), f"data.held_out={held_out}")
    assert found["leakage"]["count"] == 0
    assert 4 <= found["near_leakage"]["count"] <= 8, "four have more than half of their runs of eight words covered"


def test_a_benchmark_is_read_as_it_is_to_compare_with(
    shared_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train, questions = shared_file("ultrafeedback_1k_train.jsonl.gz"), shared_file("mt_bench_questions.jsonl")
    assert findings(capsys, str(train), "--against", str(questions))["leakage"]["count"] == 0
