"""Grouping, noise and ranking: the numbers that decide which run is called better."""

import random
import statistics
from array import array
from pathlib import Path
from typing import Any

import pytest

from prefopt.comparison.groups import Group, group_by_seed
from prefopt.comparison.metrics import find_metric
from prefopt.comparison.noise import Method, compare_groups, paired_shares, t_quantile, welch
from prefopt.comparison.outcomes import read_outcomes
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import build_comparison, rank
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import Measure, Mode, Outcomes, RunRecord, WandbPlace
from prefopt.comparison.trade_off import find_front
from prefopt.data.intervals import wilson
from prefopt.evaluation.metrics import BY_KEY, COMPARED
from prefopt.evaluation.statistics import sign_test
from prefopt.process.errors import UserError
from tests.fake_runs import write_fake_run

ACCURACY = BY_KEY["preference_accuracy"]


def record(name: str, accuracy: float | None = 0.9, n: int = 132, **fields: Any) -> RunRecord:
    """A done run with this accuracy and Wilson's interval."""
    settings = {"algorithm.name": "dpo", "algorithm.beta": 0.1, "run.seed": 0, **fields.pop("settings", {})}
    metrics = fields.pop("metrics", {})
    if accuracy is not None:
        metrics = {"preference_accuracy": Measure(accuracy, *wilson(accuracy * n, n), n), **metrics}
    fields = {"state": "done", "has_report": True, **fields}
    return RunRecord(name, f"runs/{name}", settings=settings, metrics=metrics, **fields)


def seeds(name: str, accuracies: list[float], **settings: Any) -> list[RunRecord]:
    return [
        record(f"{name}-{seed}", accuracy, settings={"run.seed": seed, **settings})
        for seed, accuracy in enumerate(accuracies)
    ]


def group(*accuracies: float, **fields: Any) -> Group:
    return Group(tuple(record(f"r{i}", accuracy, **fields) for i, accuracy in enumerate(accuracies)), len(accuracies))


def test_runs_that_differ_only_in_their_seed_are_one_group_with_sample_sd() -> None:
    (found, other) = group_by_seed([*seeds("a", [0.8, 0.9, 1.0]), record("b", settings={"algorithm.beta": 0.2})])
    spread = found.spread(ACCURACY)
    assert spread is not None
    assert (len(found.members), found.num_planned, len(other.members)) == (3, 3, 1)
    assert spread.mean == pytest.approx(0.9)
    assert spread.sd == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2), not / 3
    assert other.spread(ACCURACY).sd is None


def test_an_unfinished_seed_is_counted_and_kept_out_of_the_mean() -> None:
    runs = [*seeds("a", [0.8, 0.9]), record("a-2", 0.1, state="running", settings={"run.seed": 2})]
    (found,) = group_by_seed(runs)
    assert found.spread(ACCURACY).mean == pytest.approx(0.85)
    assert (len(found.members), found.num_planned) == (2, 3)
    comparison = build_comparison(runs, title="t")
    assert [run.name for run in comparison.unranked] == ["a-2"]


def test_a_run_with_the_seed_of_another_one_is_no_further_seed() -> None:
    runs = [record("a", 0.8), record("b", 0.8), record("c", 0.9, settings={"run.seed": 1})]
    assert [[run.name for run in found.members] for found in group_by_seed(runs)] == [["a", "c"], ["b"]]
    comparison = build_comparison(runs, title="t")
    assert any("b has the configuration and seed of a" in warning for warning in comparison.warnings)


def test_runs_without_a_known_configuration_are_not_taken_for_seeds() -> None:
    lost = [RunRecord(name, name, "done", has_report=True, metrics={"loss": Measure(1.0)}) for name in "ab"]
    assert [len(found.members) for found in group_by_seed(lost)] == [1, 1]


def test_a_metric_that_some_seeds_lack_is_averaged_over_the_others() -> None:
    found = Group((record("a", 0.8), record("b", None), record("c", 0.9)), 3)
    assert found.spread(ACCURACY).values == (0.8, 0.9)
    assert found.spread("kl_per_token") is None


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.7062047),
        (2, 4.3026527),
        (3, 3.1824463),
        (5, 2.5705818),
        (10, 2.2281389),
        (30, 2.0422725),
        (120, 1.9799304),
    ],
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-6)  # the tables' last digit


def test_between_whole_degrees_of_freedom_the_quantile_lies_between_theirs() -> None:
    assert t_quantile(2) > t_quantile(2.5) > t_quantile(3)
    assert t_quantile(1e6) == pytest.approx(1.959966, abs=1e-5)


def test_welchs_interval_is_that_of_a_worked_example() -> None:
    # Two samples of unequal spread and size: variances 2.5 and 10, standard error sqrt(2.5/5 + 10/5), 5.88 degrees.
    low, high = welch((1.0, 2.0, 3.0, 4.0, 5.0), (2.0, 4.0, 6.0, 8.0, 10.0))
    freedom = (0.5 + 2.0) ** 2 / (0.5**2 / 4 + 2.0**2 / 4)
    half = t_quantile(freedom) * 2.5**0.5
    assert freedom == pytest.approx(5.882, abs=1e-3)
    assert (low, high) == (pytest.approx(-3 - half), pytest.approx(-3 + half))
    assert t_quantile(freedom) == pytest.approx(2.459, abs=2e-3)  # between 2.571 (5) and 2.447 (6)


def test_welchs_interval_covers_the_true_difference_in_19_of_20_cases() -> None:
    chance = random.Random(0)
    num_covered = 0
    for _ in range(2000):
        a = tuple(chance.gauss(0.3, 1) for _ in range(3))
        b = tuple(chance.gauss(0, 3) for _ in range(5))
        low, high = welch(a, b)
        num_covered += low <= 0.3 <= high
    assert 0.935 <= num_covered / 2000 <= 0.975  # Welch is a little cautious; three standard errors are 0.015


def test_seeds_are_compared_by_their_spread() -> None:
    best, close, far = group(0.90, 0.92, 0.94), group(0.89, 0.91, 0.93), group(0.60, 0.61, 0.62)
    assert compare_groups(best, close, ACCURACY).method is Method.seeds
    assert compare_groups(best, close, ACCURACY).is_noise
    assert not compare_groups(best, far, ACCURACY).is_noise
    assert compare_groups(best, far, ACCURACY).value == pytest.approx(-0.31)


def test_seeds_that_agree_to_the_last_pair_do_not_make_a_difference_certain() -> None:
    best, other = group(0.95, 0.95), group(0.94, 0.94)
    found = compare_groups(best, other, ACCURACY)
    assert found.method is Method.unpaired
    assert found.is_noise


def test_one_run_against_seeds_borrows_their_spread() -> None:
    many, one = group(0.90, 0.92, 0.94), group(0.91)
    found = compare_groups(many, one, ACCURACY)
    assert found.method is Method.one_run
    half = t_quantile(2) * 0.02 * (1 + 1 / 3) ** 0.5
    assert (found.low, found.high) == (pytest.approx(-0.01 - half), pytest.approx(-0.01 + half))
    assert compare_groups(one, many, ACCURACY).value == pytest.approx(0.01)


def test_single_runs_without_outcomes_are_compared_by_both_intervals() -> None:
    # Newcombe's example (1998, table II a): 56/70 against 48/80, difference 0.2, 95 % interval 0.0524 to 0.3339.
    first, second = Group((record("a", 56 / 70, n=70),), 1), Group((record("b", 48 / 80, n=80),), 1)
    found = compare_groups(second, first, ACCURACY)
    assert found.method is Method.unpaired
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.2),
        pytest.approx(0.0524, abs=1e-4),
        pytest.approx(0.3339, abs=1e-4),
    )


def test_a_difference_without_any_uncertainty_is_not_judged() -> None:
    runs = [
        record("a", None, metrics={"preference_accuracy": Measure(0.9)}),
        record("b", None, metrics={"preference_accuracy": Measure(0.5)}, settings={"algorithm.beta": 0.2}),
    ]
    first, second = build_comparison(runs, title="t").rows
    assert (first.verdict, second.verdict, second.difference) == ("best", "not known", None)


def with_outcomes(name: str, margins: list[float], pairs: str = "same", **settings: Any) -> RunRecord:
    accuracy = statistics.fmean(margin > 0 for margin in margins)
    outcomes = Outcomes(pairs, {"tuned_margin": array("d", margins)})
    mean = Measure(statistics.fmean(margins), -9.0, 9.0, len(margins))
    metrics = {"mean_margin": mean}
    return record(name, accuracy, n=len(margins), outcomes=outcomes, metrics=metrics, settings=settings)


def test_the_same_pairs_are_compared_pair_by_pair_and_other_pairs_are_not() -> None:
    margins = [1.0] * 90 + [-1.0] * 10
    better = with_outcomes("a", [1.0] * 100)
    for pairs, method, is_noise in (("same", Method.paired, False), ("others", Method.unpaired, False)):
        found = compare_groups(Group((better,), 1), Group((with_outcomes("b", margins, pairs),), 1), ACCURACY)
        assert (found.method, found.is_noise, found.value) == (method, is_noise, pytest.approx(-0.1))


def test_pair_by_pair_shows_what_two_intervals_cannot() -> None:
    best = with_outcomes("a", [1.0] * 120 + [-1.0] * 12)
    other = with_outcomes("b", [1.0] * 112 + [-1.0] * 20)
    blind = [Group((record(one.name, one.metrics["preference_accuracy"].value),), 1) for one in (best, other)]
    assert compare_groups(*blind, ACCURACY).is_noise
    assert not compare_groups(Group((best,), 1), Group((other,), 1), ACCURACY).is_noise


@pytest.mark.parametrize("losses", range(12))
def test_the_paired_interval_agrees_with_the_exact_sign_test(losses: int) -> None:
    for wins in range(losses, 40):
        low, high = paired_shares(wins, losses, 132)
        p_value = sign_test(wins, losses) if wins + losses else 1.0
        if not 0.025 < p_value < 0.1:  # near the limit an approximation may say either
            assert (low <= 0 <= high) is (p_value >= 0.05)


def test_paired_margins_are_compared_by_their_differences() -> None:
    chance = random.Random(1)
    hard = [chance.gauss(0, 5) for _ in range(200)]
    best = with_outcomes("a", [value + 0.1 for value in hard])
    other = with_outcomes("b", [value + chance.gauss(0, 0.1) for value in hard])
    found = compare_groups(Group((best,), 1), Group((other,), 1), BY_KEY["mean_margin"])
    assert found.method is Method.paired
    assert found.value == pytest.approx(-0.1, abs=0.03)
    assert not found.is_noise


def test_outcomes_of_the_same_lines_of_other_data_are_other_pairs(tmp_path: Path) -> None:
    report = write_fake_run(tmp_path / "run", margins=[0.5, -0.5]) / "report"
    same, other = read_outcomes(report, "x"), read_outcomes(report, "y")
    assert same.pairs != other.pairs
    assert list(same.margins["tuned_margin"]) == [0.5, -0.5]
    (run,) = RunReader().read(find_places([tmp_path / "run"]))
    assert run.outcomes == read_outcomes(report, run.held_out_data)


@pytest.mark.parametrize("content", ["{", '{"source": 1}\n', '{"tuned_margin": 1}\n', "[]\n"])
def test_damaged_outcomes_are_named_and_not_used(content: str, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", margins=[0.5])
    (folder / "report" / "pairs.jsonl").write_text(content)
    (run,) = RunReader().read(find_places([folder]))
    assert run.outcomes is None
    assert run.is_ranked


@pytest.mark.parametrize(
    ("metric", "values", "order"),
    [
        ("preference_accuracy", [0.1, 0.9, 0.5], "bca"),
        ("loss", [0.1, 0.9, 0.5], "acb"),
        ("kl_per_token", [0.1, 0.9, 0.5], "acb"),
        ("length_change", [-0.5, 0.9, 0.1], "cab"),
        ("pairs_per_s", [1.0, 3.0, 2.0], "bca"),
    ],
)
def test_rows_stand_in_the_order_that_is_better_for_the_metric(metric: str, values: list[float], order: str) -> None:
    groups = [
        Group((record(name, None, metrics={metric: Measure(value)}),), 1)
        for name, value in zip("abc", values, strict=True)
    ]
    assert "".join(row.group.name for row in rank(groups, BY_KEY[metric])) == order


def test_equal_values_share_a_rank_and_the_next_one_is_skipped() -> None:
    rows = rank(
        [Group((record(name, value),), 1) for name, value in zip("abcd", (0.8, 0.9, 0.9, 0.7), strict=True)], ACCURACY
    )
    assert [(row.group.name, row.rank, row.is_tied, row.is_first) for row in rows] == [
        ("b", 1, True, True),
        ("c", 1, True, False),
        ("a", 3, False, False),
        ("d", 4, False, False),
    ]
    assert rows[1].verdict == "within noise of #1"


def test_runs_without_the_metric_come_last_without_a_rank() -> None:
    rows = rank([Group((record("a", None),), 1), Group((record("b", 0.2),), 1)], ACCURACY)
    assert [(row.group.name, row.rank, row.verdict) for row in rows] == [("b", 1, "best"), ("a", None, "")]
    (warning,) = build_comparison([record("a", None)], title="t", metric=ACCURACY).warnings
    assert "no run that is done has preference_accuracy" in warning
    nothing = rank([Group((record("a", None),), 1)], ACCURACY)
    assert [(row.rank, row.is_first) for row in nothing] == [(None, False)]


def test_an_unfinished_run_is_never_ranked_above_a_done_one() -> None:
    runs = [record("done", 0.6), record("live", 0.99, state="running"), record("lost", 0.99, has_report=False)]
    comparison = build_comparison(runs, title="t")
    assert [row.group.name for row in comparison.rows] == ["done"]
    assert [run.name for run in comparison.unranked] == ["live", "lost"]


@pytest.mark.parametrize(
    ("metrics", "key"),
    [
        ([{"loss": Measure(1.0)}], "loss"),
        ([{"loss": Measure(1.0)}, {"preference_accuracy": Measure(0.5)}], "preference_accuracy"),
        ([{}], "preference_accuracy"),
    ],
)
def test_the_loss_ranks_only_where_no_run_has_an_accuracy(metrics: list[dict[str, Measure]], key: str) -> None:
    runs = [record(f"r{i}", None, metrics=found, settings={"algorithm.beta": i}) for i, found in enumerate(metrics)]
    assert build_comparison(runs, title="t").metric.key == key


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean kl_per_token"):
        find_metric("kl_per_tokn")
    assert all(find_metric(metric.key) is metric for metric in COMPARED)


def test_a_best_run_that_its_report_refuses_is_said_with_the_reason_and_the_alternative() -> None:
    runs = [
        record("ruined", 0.99, decision="do_not_ship", reason="The model was ruined."),
        record("good", 0.9, decision="ship", settings={"algorithm.beta": 0.2}),
    ]
    (warning,) = build_comparison(runs, title="t").warnings
    assert "#1 by preference_accuracy is not to be shipped" in warning
    assert "The model was ruined." in warning
    assert "first row that is to be shipped is #2" in warning


def test_other_held_out_data_are_pointed_out() -> None:
    runs = [record("a", 0.9, held_out_data="x"), record("b", 0.8, held_out_data="y", settings={"algorithm.beta": 0.2})]
    comparison = build_comparison(runs, title="t")
    assert [row.has_other_data for row in comparison.rows] == [False, True]
    assert any("other held-out data" in warning for warning in comparison.warnings)


def test_links_name_the_group_that_is_online_and_the_command_for_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    online = WandbPlace(Mode.online, "team", "pro ject", "a/b")
    offline = WandbPlace(Mode.offline, None, "p", None)
    runs = [record("a", wandb=online), record("b", wandb=online), record("c", wandb=offline), record("d")]
    assert build_comparison(runs, title="t", folders=["runs/x"]).links == [
        "In W&B: https://wandb.ai/team/pro%20ject/groups/a%2Fb",
        "1 run is recorded offline. To open it in W&B: prefopt sync runs/x",
    ]
    assert build_comparison([record("a")], title="t").links == []


def test_no_point_of_the_front_is_beaten_and_every_other_one_is() -> None:
    chance = random.Random(2)
    points = {index: (chance.random(), chance.random()) for index in range(60)}
    front = find_front(points)

    def is_beaten(key: int) -> bool:
        return any(
            other != key and all(a <= b for a, b in zip(points[other], points[key], strict=True)) for other in points
        )

    assert set(front) == {key for key in points if not is_beaten(key)}
    assert front == sorted(front, key=lambda key: points[key])
