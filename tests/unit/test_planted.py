"""The benchmark of planted defects, on the rows that the project ships: the audit finds what it promises to find."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from benchmarks import planted, results
from benchmarks.defects import COPIES, IN_PLACE, LEAKS
from prefopt.data.audit.minhash import jaccard


def test_a_small_run_finds_what_is_planted_and_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    planted.main(["--rounds", "1", "--shares", "0.02", "--flips", "0.2", "--write"])
    (path,) = tmp_path.glob("*/planted.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {each["check"] for each in written["recall"]} == {*IN_PLACE, *COPIES, *LEAKS}
    for each in written["recall"]:
        assert each["planted"] == 12
        assert each["recall"] >= written["min_recall"][each["check"]] - 0.1, each
        assert each["false_share"] <= 0.005, each
    (flips,) = written["flips"]
    assert flips["ratio"] >= written["min_ratio"]
    assert "20% of labels swapped" in capsys.readouterr().out


@pytest.mark.parametrize("check", [*IN_PLACE, *COPIES, *LEAKS])
def test_each_defect_is_planted_into_rows_of_its_own(check):
    rows = planted.read(planted.OWN)[:200]
    field = planted.plant(rows[:150], rows[150:], 0.02, random.Random(0))
    places = field.planted[check]
    assert len(places) == 3
    assert all(places.isdisjoint(others) for name, others in field.planted.items() if name != check)
    assert places <= {row.source for split in field.splits.values() for row in split}
    again = planted.plant(rows[:150], rows[150:], 0.02, random.Random(0))
    assert again.splits == field.splits, "a seed gives the same defects"


def test_near_copies_have_most_words_in_common_but_not_all():
    draw = random.Random(1)
    copies = [(row, COPIES["near_duplicate"](row, draw)) for row in planted.read(planted.OWN)[:60]]
    pairs = [(row, copy) for row, copy in copies if copy is not None]
    assert len(pairs) > 20
    for row, copy in pairs:
        before, after = (
            "\n".join(map(planted_text, (each.prompt, each.chosen, each.rejected))) for each in (row, copy)
        )
        assert 0.8 <= jaccard(before, after) < 1


def planted_text(content):
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)


def test_average_precision_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    scores, wanted = draw.normal(size=50), set(range(0, 50, 4))
    ranked = np.argsort(-scores).tolist()
    expected = average_precision_score([row in wanted for row in range(50)], scores)
    assert planted.average_precision(ranked, wanted, 50) == pytest.approx(expected)


def test_rows_that_are_not_ranked_count_as_ranked_at_random():
    assert planted.average_precision([0, 1], {0, 3}, 4) == pytest.approx((1 + 2 / 4) / 2)
    assert planted.average_precision([], {2}, 1) == 1
