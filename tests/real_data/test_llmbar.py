"""LLMBar-Natural through the harness: both kinds of judges get an agreement and a kappa, whatever these are."""

import json
import re
from typing import Any

import numpy as np
import pytest

from prefopt.config.judges import read_judges
from prefopt.config.load import load_config
from prefopt.evaluation.judges import build_judges
from prefopt.evaluation.judges.judge import JudgeContext, LabelledPair
from prefopt.evaluation.judging import judge_answers, try_judge
from prefopt.evaluation.statistics import Prompts

LONGER = r"\w+"
"""A point for each word: the longer answer wins."""


@pytest.fixture(scope="module")
def pairs(shared_file) -> list[LabelledPair]:
    rows = json.loads(shared_file("llmbar_natural.json").read_text(encoding="utf-8"))
    assert len(rows) == 100
    return [
        LabelledPair(row["input"], row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows
    ]


@pytest.mark.parametrize("kind", ["rule", "model"])
def test_agreement_and_kappa_of_a_judge_are_computed(kind, pairs, overrides, tiny_model, tmp_path):
    tables: dict[str, Any] = {
        "rule": {"kind": "rule", "patterns": [LONGER]},
        "model": {"kind": "model", "model": str(tiny_model)},
    }
    (judge,) = build_judges(read_judges([tables[kind]]), JudgeContext([], load_config(overrides), tmp_path))
    standing = try_judge(judge, pairs, Prompts.of([pair.prompt for pair in pairs]))
    shown = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    read = judge_answers(judge, *zip(*shown, strict=True))
    outcomes = read.outcomes[read.is_read]
    right, wrong = float((outcomes == 1).mean()), float((outcomes == -1).mean())
    assert standing.agreement.value == pytest.approx((1 + right - wrong) / 2)
    tied = float((outcomes == 0).mean())
    assert standing.kappa.value == pytest.approx((right - wrong) / (1 + tied))
    assert standing.agreement.n == len(outcomes) == 100 - standing.num_unread
    assert standing.agreement.low < standing.agreement.value < standing.agreement.high
    assert standing.facts["kind"] == kind
    if kind == "rule":
        words = [len(re.findall(r"\w+", chosen)) - len(re.findall(r"\w+", rejected)) for _, chosen, rejected in shown]
        assert outcomes.tolist() == np.sign(words).tolist()
    else:
        assert standing.facts["num_too_long"] == 2 * standing.num_unread < 40  # each in both orders
    json.dumps(standing.facts, allow_nan=False)
