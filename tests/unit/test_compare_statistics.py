"""Grouping and ranking: which row stands where, and what a reader must know of it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefopt.comparison.groups import Group, group_by_seed
from prefopt.comparison.metrics import find_metric
from prefopt.comparison.outcomes import read_outcomes
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import build_comparison, rank
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import Measure, Mode, RunRecord, WandbPlace
from prefopt.comparison.trade_off import find_front
from prefopt.data.intervals import wilson
from prefopt.evaluation.metrics import BY_KEY, COMPARED
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


def test_outcomes_of_the_same_lines_of_other_data_or_prompts_are_other_pairs(tmp_path: Path) -> None:
    report = write_fake_run(tmp_path / "run", margins=[0.5, -0.5]) / "report"
    grouped = write_fake_run(tmp_path / "grouped", margins=[0.5, -0.5], prompts=[0, 0]) / "report"
    same, other, clustered = read_outcomes(report, "x"), read_outcomes(report, "y"), read_outcomes(grouped, "x")
    assert len({same.pairs, other.pairs, clustered.pairs}) == 3
    assert list(same.margins["tuned_margin"]) == [0.5, -0.5]
    assert (list(same.prompts), list(clustered.prompts)) == ([0, 1], [0, 0])
    (run,) = RunReader().read(find_places([tmp_path / "run"]))
    assert run.outcomes == read_outcomes(report, run.held_out_data)


def test_pairs_of_an_earlier_version_count_as_a_prompt_each_and_a_warning_says_so(tmp_path: Path) -> None:
    for number in range(2):
        folder = write_fake_run(
            tmp_path / f"run{number}", margins=[0.5, -0.5], settings={"algorithm.beta": 1 + number}
        )
        file = folder / "report" / "pairs.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(_without_prompt(line)) + "\n" for line in lines))
    comparison = build_comparison(RunReader().read(find_places([tmp_path])), title="t")
    (warning,) = [line for line in comparison.warnings if "earlier version" in line]
    assert "every pair counts as one" in warning
    assert warning.endswith("run0, run1.")


def _without_prompt(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "prompt"}


@pytest.mark.parametrize(
    "content",
    ["{", '{"source": "a", "tuned_margin": 1, "prompt": "p"}\n', '{"source": 1}\n', '{"tuned_margin": 1}\n', "[]\n"],
)
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
    assert "".join(row.group.name for row in rank(groups, BY_KEY[metric]).rows) == order


def test_equal_values_share_a_rank_and_the_next_one_is_skipped() -> None:
    values = zip("abcd", (0.8, 0.9, 0.9, 0.7), strict=True)
    rows = rank([Group((record(name, value),), 1) for name, value in values], ACCURACY).rows
    assert [(row.group.name, row.rank, row.is_tied, row.is_first) for row in rows] == [
        ("b", 1, True, True),
        ("c", 1, True, False),
        ("a", 3, False, False),
        ("d", 4, False, False),
    ]
    assert rows[1].verdict == "within noise of #1"


def test_runs_without_the_metric_come_last_without_a_rank() -> None:
    rows = rank([Group((record("a", None),), 1), Group((record("b", 0.2),), 1)], ACCURACY).rows
    assert [(row.group.name, row.rank, row.verdict) for row in rows] == [("b", 1, "best"), ("a", None, "")]
    (warning,) = build_comparison([record("a", None)], title="t", metric=ACCURACY).warnings
    assert "no run that is done has preference_accuracy" in warning
    nothing = rank([Group((record("a", None),), 1)], ACCURACY).rows
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


def test_a_row_that_its_report_refuses_stands_after_all_others_and_the_reason_is_said() -> None:
    runs = [
        record("ruined", 0.99, decision="do_not_ship", reason="The model was ruined."),
        record("good", 0.9, decision="ship", settings={"algorithm.beta": 0.2}),
        record("fair", 0.7, decision="undecided", settings={"algorithm.beta": 0.3}),
    ]
    comparison = build_comparison(runs, title="t")
    rows = [(row.group.name, row.rank, row.verdict) for row in comparison.rows]
    assert rows == [("good", 1, "best"), ("fair", 2, "worse"), ("ruined", 3, "better")]
    (warning,) = comparison.warnings
    assert "by preference_accuracy alone, ruined would be before #1" in warning
    assert "(its report says do not ship: The model was ruined)." in warning
    assert comparison.winner.num == 2, "the ruined row could not be chosen"


def test_a_refused_row_that_is_behind_anyway_needs_no_warning() -> None:
    runs = [
        record("ruined", 0.5, decision="do_not_ship"),
        record("good", 0.9, settings={"algorithm.beta": 0.2}),
    ]
    assert build_comparison(runs, title="t").warnings == []


def test_where_every_row_is_refused_the_best_of_them_is_first_and_a_warning_says_so() -> None:
    runs = [
        record(name, accuracy, decision="do_not_ship", settings={"algorithm.beta": accuracy})
        for name, accuracy in (("a", 0.8), ("b", 0.9))
    ]
    comparison = build_comparison(runs, title="t")
    assert [(row.group.name, row.rank, row.is_first) for row in comparison.rows] == [("b", 1, True), ("a", 2, False)]
    assert any("#1 too" in warning and "do not ship" in warning for warning in comparison.warnings)


@pytest.mark.parametrize(
    ("key", "value", "limit", "is_refused"),
    [
        ("kl_per_token", 1.2, 1.0, True),
        ("kl_per_token", 1.0, 1.0, False),
        ("overfitting_gap", -0.3, 0.2, True),  # nearer to zero is better
        ("overfitting_gap", -0.1, 0.2, False),
    ],
)
def test_a_row_that_breaks_the_constraint_of_its_sweep_stands_after_all_others(
    key: str, value: float, limit: float, is_refused: bool
) -> None:
    runs = [
        record("far", 0.95, metrics={key: Measure(value)}, constraint={key: limit}),
        record("near", 0.9, metrics={key: Measure(0.0)}, constraint={key: limit}, settings={"algorithm.beta": 0.2}),
    ]
    comparison = build_comparison(runs, title="t")
    assert [row.group.name for row in comparison.rows] == (["near", "far"] if is_refused else ["far", "near"])
    assert any(f"{key} {abs(value):.3g} is above {limit:g}" in line for line in comparison.warnings) is is_refused


def test_a_limit_that_a_report_cannot_be_checked_by_is_said() -> None:
    runs = [record("a", constraint={"kl_per_token": 1.0})]
    (warning,) = build_comparison(runs, title="t").warnings
    assert warning == "sweep.constraint.kl_per_token could not be checked, since the report does not have it: a."


def test_one_refused_seed_refuses_its_configuration() -> None:
    bad = record("a-1", 0.99, decision="do_not_ship", settings={"run.seed": 1})
    runs = [record("a-0", 0.99), bad, record("b", 0.8, settings={"algorithm.beta": 0.2})]
    assert build_comparison(runs, title="t").rows[0].group.name == "b"


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
