"""The published raw win rates of AlpacaEval 2 follow from its stored annotations by the same code as a report's."""

import csv
import gzip
import json

import numpy as np
import pytest

from prefopt.evaluation.judging import standard_error, win_rate
from prefopt.evaluation.statistics import Prompts

PUBLISHED = {"alpaca-7b": (2.5915, 0.487), "claude-2.1": (15.7335, 1.120)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_raw_win_rates_are_reproduced(shared_file, name: str) -> None:
    with gzip.open(shared_file(f"alpaca_eval2_prefs_{name}.json.gz"), "rt") as file:
        preferences = [row["preference"] for row in json.load(file)]
    # 1 is a win of the reference, 2 one of the model, 0 a draw; a missing one is no annotation.
    outcomes = np.array([2 * ((each or 1.5) - 1) - 1 for each in preferences if each is not None])
    found = win_rate(outcomes, Prompts.all_different(len(outcomes)))
    with open(shared_file("alpaca_eval2_leaderboard.csv"), newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row[next(iter(row))] == name)
    rate, error = PUBLISHED[name]
    assert 100 * found.value == pytest.approx(float(row["win_rate"]), abs=1e-4)
    assert 100 * found.value == pytest.approx(rate, abs=1e-4)
    assert 100 * standard_error(outcomes) == pytest.approx(float(row["standard_error"]), abs=1e-4)
    assert 100 * standard_error(outcomes) == pytest.approx(error, abs=1e-3)
    assert 100 * found.low < rate < 100 * found.high
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error / 100, rel=0.1)
