"""The one table of metrics, and that everything which names a metric agrees with it."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.comparison.csv_file import write_csv
from prefopt.comparison.curves import CURVES
from prefopt.comparison.log import NUMBERS
from prefopt.comparison.metrics import from_line, from_report, from_summary
from prefopt.comparison.ranking import build_comparison
from prefopt.comparison.records import Measure
from prefopt.config.algorithms import ALGORITHMS, AlgorithmConfig
from prefopt.config.cluster import SearchConfig, SweepConfig
from prefopt.evaluation import metrics, summary
from prefopt.evaluation.constraint import check_constraint, values_of
from prefopt.evaluation.metrics import BY_KEY, COMPARED, METRICS, NUMBER, Better, Metric, logged_metric
from prefopt.evaluation.sampling import Answer
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.summary import register
from prefopt.process.errors import UserError
from prefopt.reports.curves import PANELS
from prefopt.reports.glossary import reading_table, terms
from prefopt.training.callbacks import SHOWN
from tests.fake_runs import base_config, fake_lines, fake_report
from tests.unit.test_compare_statistics import record

ROOT = Path(__file__).parents[2]
LOGGED = {metric.logged for metric in METRICS if metric.logged}


def test_keys_and_places_are_unique() -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)
    paths = [metric.path for metric in METRICS if metric.path]
    assert len(set(paths)) == len(paths)


def test_a_name_in_the_log_is_one_metric_of_an_algorithm() -> None:
    pairs = [(rows, metric.logged) for metric in METRICS if metric.logged for rows in metric.rows]
    assert len(set(pairs)) == len(pairs)
    assert logged_metric("loss", "sft").key == "loss"
    assert logged_metric("loss", "preference").key == "preference_loss"


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_keep_best_takes_the_metrics_that_the_algorithm_logs_and_each_has_a_good_end(
    algorithm: type[AlgorithmConfig],
) -> None:
    logged = [metric.logged for metric in METRICS if metric.logged and algorithm.rows in metric.rows]
    measured = algorithm.held_out_metrics
    assert set(measured) == set(logged)
    assert all(logged_metric(name, algorithm.rows).better is not Better.neither for name in measured)


def test_the_default_of_a_search_is_a_metric_and_on_its_good_side() -> None:
    search = SearchConfig()
    assert (BY_KEY[search.metric].better is Better.higher) is search.maximise


def test_the_default_constraint_of_a_sweep_limits_metrics_that_are_better_the_lower_they_are() -> None:
    constraint = SweepConfig().constraint
    assert check_constraint(constraint) == constraint


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (
            {"kl_per_tokn": 1.0},
            "sweep.constraint.kl_per_tokn: no metric of reports that is better the lower it is. Did",
        ),
        ({"preference_accuracy": 0.5}, "sweep.constraint.preference_accuracy: no metric"),
        ({"response_length": 50.0}, "sweep.constraint.response_length: no metric"),
        (
            {"kl_per_token": "much"},
            "sweep.constraint.kl_per_token: must be a number >= 0, or null for none, found 'much'",
        ),
        ({"kl_per_token": True}, "must be a number"),
        ({"kl_per_token": float("nan")}, "must be a number"),
        ({"kl_per_token": -1}, "must be a number"),
    ],
)
def test_a_constraint_that_limits_nothing_is_refused(wanted: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as refused:
        check_constraint(wanted)
    assert part in str(refused.value)


def test_a_limit_of_null_is_none_and_what_is_not_finite_breaks_every_limit() -> None:
    assert check_constraint({"kl_per_token": None, "repetition": 1}) == {"repetition": 1.0}
    report = {"drift": {"perplexity": {"ratio": {"value": None}}, "kl_per_token": {"value": 0.5}}}
    constraint = {"neutral_ratio": 1.5, "kl_per_token": 1.0, "repetition": 0.1}
    assert values_of(report, constraint) == {"neutral_ratio": float("inf"), "kl_per_token": 0.5}


def test_what_charts_and_the_console_draw_of_the_log_is_in_the_table() -> None:
    drawn = {name for panel in PANELS for name, _ in panel.metrics} | {name for name, *_ in SHOWN}
    assert drawn <= LOGGED
    assert {curve.name for curve in CURVES} - LOGGED == {"grad_norm"}  # of training steps alone
    assert {metric.logged for metric in COMPARED if metric.logged} <= set(NUMBERS)


def test_every_metric_of_a_report_is_read_from_the_report_and_from_the_summary_of_wandb() -> None:
    report = fake_report(base_config(), fake_lines("dpo", 20, 5, 0.9, 0), 0.9, 0.2, 1.0, 132, "ship")
    found = from_report(report)
    for metric in COMPARED:
        block = report
        for key in metric.path:
            block = (block or {}).get(key) or {}
        if metric.path and block:
            value = block["value"] if isinstance(block, dict) else block
            assert found[metric.key].value == value
            assert from_summary({"/".join(metric.path): value})[metric.key].value == value


def test_a_line_of_an_unknown_algorithm_has_no_loss_per_token() -> None:
    line = {"split": "held_out", "loss": 0.5, "preference_accuracy": 0.75}
    assert set(from_line(line, None)) == {"preference_accuracy"}
    assert set(from_line(line, "sft")) == {"loss"}


def test_what_can_mislead_is_explained_in_the_report() -> None:
    for metric in METRICS:
        assert metric.name
        assert metric.title
        assert not metric.trap or metric.hint, f"{metric.key} has a trap and no hint"
    names = {term.name for term in terms()}
    assert {metric.name for metric in METRICS if metric.trap and metric.path} <= names


def test_readme_reads_the_numbers_as_the_table_does() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert reading_table() in readme, f"README, section Reading the numbers, should hold:\n{reading_table()}"


def test_a_metric_of_a_report_is_named_in_the_table_alone() -> None:
    """Code asks for it by the table's constant; what is logged as well has its name in the layers that log it too."""
    defaults = SweepConfig().constraint  # settings are in a layer below the table
    others = {"reward_margin"}  # also a column of pairs.jsonl
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    for metric in METRICS:
        is_other_word = "_" not in metric.key or metric.key in others  # `gain` is a block, `finished` a state of W&B
        if metric.path and metric.logged != metric.key and not (metric.is_speed or is_other_word):
            named = {path.name for path, text in texts.items() if f'"{metric.key}"' in text}
            expected = {"metrics.py", "cluster.py"} if metric.key in defaults else {"metrics.py"}
            assert named == expected, f"{metric.key} is named in {named}"


@pytest.fixture
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Metrics that a test registers are gone after it."""
    tables: list[Any] = [METRICS, COMPARED, BY_KEY, summary.OF_PAIRS, summary.OF_ANSWERS]
    before = [table.copy() for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        (table.update if isinstance(table, dict) else table.extend)(entries)


def own(key: str, better: Better = Better.higher) -> Metric:
    return Metric(key, "M", "m", "M", NUMBER, better)


@pytest.mark.parametrize(
    "key", ["value", "ci95", "n", "num_cut", "cut_at", "rank", "difference", "decision", "measured_at_step", "loss_n"]
)
def test_a_metric_takes_no_word_of_a_report_and_no_column_of_a_comparison(own_metrics: None, key: str) -> None:
    with pytest.raises(UserError, match=f"metric '{key}': .*Rename it"):
        register(own(key), of_answers=len)


def test_no_column_of_a_comparison_stands_twice(own_metrics: None, tmp_path: Path) -> None:
    keys = ["mine", "mine_low", "gap", "your_high", "your", *metrics.RUN_COLUMNS]
    for key in keys:
        try:
            register(own(key), of_answers=len)
        except UserError:
            continue
    assert {"mine", "your_high"} <= set(BY_KEY)
    measured = {key: Measure(1.0, 0.5, 1.5, 3) for key in BY_KEY}
    write_csv(build_comparison([record("r", metrics=measured)], title="t"), tmp_path / "compare.csv")
    header = next(csv.reader((tmp_path / "compare.csv").open(encoding="utf-8")))
    assert "your_high_low" in header
    assert len(set(header)) == len(header)


ANSWERS = [Answer([1, 2], finished=True), Answer([3], finished=False)]


@pytest.mark.parametrize("value", [None, "long", [1.0], np.ones(1)])
def test_a_metric_of_answers_that_gives_no_number_is_named(own_metrics: None, value: Any) -> None:
    register(own("mine"), of_answers=lambda answer: value)
    with pytest.raises(UserError, match=r"metric mine: its function must return a truth or a number, found .*Mend it"):
        summary.OF_ANSWERS["mine"](ANSWERS)


def test_a_metric_of_answers_may_be_a_truth_or_any_kind_of_number(own_metrics: None) -> None:
    for value in (True, 1, 1.0, np.float32(1), np.int64(1), np.bool_(True)):
        register(own("mine"), of_answers=lambda answer, value=value: value)
        assert summary.OF_ANSWERS["mine"](ANSWERS).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_says_for_how_many_pairs_or_answers(own_metrics: None, value: float) -> None:
    register(own("mine"), of_answers=lambda answer: value if answer.finished else 1.0)
    with pytest.raises(UserError, match=r"metric mine: its function is not finite for 1 of 2 answers\. Mend it"):
        summary.OF_ANSWERS["mine"](ANSWERS)
    register(own("mine"), of_pairs=lambda pairs: np.full(3, value))
    scores = Scores(np.ones(3), np.ones(3))
    with pytest.raises(UserError, match=r"metric mine: its function is not finite for 3 of 3 pairs\. Mend it"):
        summary.OF_PAIRS["mine"](PairScores(scores, scores))
