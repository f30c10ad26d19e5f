"""The one table of metrics, and that everything which names a metric agrees with it."""

from pathlib import Path

import pytest

from prefopt.comparison.curves import CURVES
from prefopt.comparison.log import NUMBERS
from prefopt.comparison.metrics import from_line, from_report, from_summary
from prefopt.config.algorithms import ALGORITHMS, AlgorithmConfig
from prefopt.config.cluster import SearchConfig
from prefopt.evaluation.metrics import BY_KEY, COMPARED, METRICS, Better, logged_metric
from prefopt.reports.curves import PANELS
from prefopt.reports.glossary import reading_table, terms
from prefopt.training.callbacks import SHOWN
from tests.fake_runs import base_config, fake_lines, fake_report

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
    others = {"reward_margin"}  # also a column of pairs.jsonl
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    for metric in METRICS:
        is_other_word = "_" not in metric.key or metric.key in others  # `gain` is a block, `finished` a state of W&B
        if metric.path and metric.logged != metric.key and not (metric.is_speed or is_other_word):
            named = [path.name for path, text in texts.items() if f'"{metric.key}"' in text]
            assert named == ["metrics.py"], f"{metric.key} is named in {named}"
