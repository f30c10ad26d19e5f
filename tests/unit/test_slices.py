"""Parts of the prompts: rates by hand, and how often chance, or a truly bad part, gets one named."""

import json

import numpy as np
import pytest

from prefopt.data.intervals import wilson
from prefopt.evaluation import slices as module
from prefopt.evaluation.slices import FEWEST_PROMPTS, as_rates, by_length, by_script, find_slices


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 199)
    monkeypatch.setattr(module, "BLOCK", 199)


def draw_groups(rng: np.random.Generator, num: int) -> dict[str, list[str]]:
    """Four groupings with 16 groups, of which the last nearly repeats the first."""
    topics = rng.choice([f"t{number}" for number in range(6)], num, p=np.array([6, 5, 4, 3, 2, 1]) / 21).tolist()
    return {
        "topic": topics,
        "source": rng.choice(["a", "b"], num, p=[0.8, 0.2]).tolist(),
        "length": rng.choice(list("wxyz"), num).tolist(),
        "tag": [topic if rng.random() < 0.8 else "other" for topic in topics],
    }


def test_rates_intervals_and_gaps_are_by_hand() -> None:
    verdicts = np.array([1.0] * 30 + [0.0] * 10 + [-1.0] * 20 + [np.nan] * 2)
    names = ["x"] * 40 + ["y"] * 22
    found = find_slices(as_rates(verdicts), {"topic": names})
    assert [each.name for each in found.found] == ["y", "x"]
    lost, won = found.found
    assert (won.rate.value, won.rate.n) == ((30 + 5) / 40, 40)
    assert (won.rate.low, won.rate.high) == pytest.approx(wilson(35, 40), abs=5e-3)
    assert (lost.rate.value, lost.rate.n) == (0.0, 20)
    assert lost.gap.value == pytest.approx(-35 / 40)
    assert lost.gap.high < 0
    assert found.num_without_outcome == 2
    assert found.worst is lost


def test_names_that_differ_in_a_nul_at_their_end_are_two() -> None:
    names = ["road"] * 3 + ["road\0"] * 2 + ["home"]
    found = find_slices(np.array([1.0, 1, 1, 0, 0, 1]), {"topic": names})
    assert {each.name: (each.rate.value, each.rate.n) for each in found.found} == {
        "road": (1.0, 3),
        "road\0": (0.0, 2),
        "home": (1.0, 1),
    }


def test_where_nothing_differs_a_slice_is_named_at_most_once_in_twenty(quick: None) -> None:
    rng = np.random.default_rng(0)
    num_named = 0
    for round_ in range(400):
        num = int(rng.integers(50, 150))
        rates = rng.random(num) < 0.8 if round_ % 2 else as_rates(rng.choice([-1.0, 0.0, 1.0], num, p=[0.2, 0.3, 0.5]))
        num_named += find_slices(rates, draw_groups(rng, num), seed=round_).worst is not None
    # The mean of 400 rounds at exactly 5 % is 20, with a standard deviation of 4.4.
    assert num_named <= 20 + 2 * 4.4


def test_a_slice_whose_outcomes_vary_more_but_are_not_worse_is_not_named(quick: None) -> None:
    rng = np.random.default_rng(1)
    num_named = 0
    for round_ in range(200):
        groups = draw_groups(rng, 120)
        few_ties = np.array(groups["topic"]) == "t3"
        verdicts = np.where(few_ties | (rng.random(120) < 0.3), rng.choice([-1.0, 1.0], 120), 0.0)
        num_named += find_slices(as_rates(verdicts), groups, seed=round_).worst is not None
    assert num_named <= 10 + 2 * 3.1


def test_a_slice_that_is_truly_worse_is_named(quick: None) -> None:
    rng = np.random.default_rng(2)
    named = []
    for round_ in range(40):
        groups = draw_groups(rng, 200)
        is_bad = np.array(groups["topic"]) == "t1"
        worst = find_slices(rng.random(200) < np.where(is_bad, 0.4, 0.9), groups, seed=round_).worst
        named.append(None if worst is None else (worst.grouping, worst.name))
    assert sum(each in (("topic", "t1"), ("tag", "t1")) for each in named) >= 36


def test_small_slices_are_shown_and_never_named() -> None:
    small = FEWEST_PROMPTS - 1
    rates = np.array([False] * small + [True] * 200)
    found = find_slices(rates, {"topic": ["bad"] * small + ["good"] * 200})
    assert found.found[0].rate.value == 0.0
    assert found.found[0].p_value is None
    assert found.worst is None
    one_more = find_slices(np.concatenate([[False], rates]), {"topic": ["bad"] * (small + 1) + ["good"] * 200})
    assert one_more.worst is not None
    assert one_more.worst.name == "bad"


def test_equal_outcomes_one_group_or_no_prompts_name_nothing() -> None:
    assert find_slices(np.ones(50, bool), {"topic": ["a", "b"] * 25}).worst is None
    assert find_slices(np.arange(50) % 2 == 0, {"topic": ["a"] * 50}).found == ()
    assert find_slices(np.full(3, np.nan), {"topic": ["a", "b", "c"]}).found == ()
    assert find_slices(np.zeros(0), {"topic": []}).to_dict() == {
        "slices": [],
        "worst": None,
        "num_without_outcome": 0,
    }


def test_many_groups_are_put_together_and_the_result_is_json() -> None:
    rng = np.random.default_rng(3)
    names = [f"tag {number % 60}" for number in range(600)]
    found = find_slices(rng.random(600) < 0.5, {"tag": names})
    assert len(found.found) == 21
    assert {each.name for each in found.found if each.name.startswith("(")} == {"(40 others)"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_order_of_prompts_and_groupings_changes_no_rate() -> None:
    rng = np.random.default_rng(4)
    groups, rates = draw_groups(rng, 100), rng.random(100) < 0.6
    order = rng.permutation(100)
    shuffled = {key: [groups[key][row] for row in order] for key in reversed(groups)}
    first, second = find_slices(rates, groups), find_slices(rates[order], shuffled)
    shown = [
        {(s.grouping, s.name, s.rate.n, round(s.rate.low, 9), round(s.gap.low, 9)) for s in found.found}
        for found in (first, second)
    ]
    assert shown[0] == shown[1]


def test_prompts_are_grouped_by_quarters_of_their_length() -> None:
    names = by_length(["x" * length for length in (1, 2, 3, 4, 5, 6, 7, 8)])
    assert (
        names
        == ["1 to 2 characters"] * 2
        + ["3 to 4 characters"] * 2
        + ["5 to 6 characters"] * 2
        + ["7 to 8 characters"] * 2
    )
    assert set(by_length(["same"] * 9)) == {"4 characters"}
    assert by_length([]) == []


def test_prompts_are_grouped_by_the_script_of_most_letters() -> None:
    texts = ["Hello Мир", "Привет you", "你好", "12 + 3", "", "שלום", "\ud800\0", "é" * 10**6]
    assert by_script(texts) == ["Latin", "Cyrillic", "Cjk", "(none)", "(none)", "Hebrew", "(none)", "Latin"]
