"""Scales, ticks, labels and axes of the comparison's charts: pure functions with answers that can be written down."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from prefopt.comparison.log import ARROW_FROM, parse_log
from prefopt.comparison.metrics import from_report
from prefopt.comparison.page import render_page
from prefopt.comparison.parallel import setting_axis
from prefopt.comparison.ranking import build_comparison
from prefopt.comparison.records import Curve, Measure
from prefopt.reports.charts.drawing import path, robust_range, spread_out, steps, tick_texts, ticks
from tests.unit.test_compare_statistics import record


def test_a_point_too_far_off_stands_at_the_edge_and_is_counted() -> None:
    kls = [index / 100 for index in range(60)] + [1e9]
    runs = [
        record(
            f"r{index}", 0.9 - kl / 1e10, metrics={"kl_per_token": Measure(kl)}, settings={"trainer.max_steps": index}
        )
        for index, kl in enumerate(kls)
    ]
    html = render_page(build_comparison(runs, title="t"))
    places = [float(x) for x in re.findall(r'<circle class="(?:best|rest)[^>]* cx="([^"]+)"', html)]
    assert len(places) == 61
    assert max(places) == 520 - 26
    assert len(set(places)) == 61
    assert "Far-off points stand at the edge: 1." in html


def test_the_mark_of_a_base_too_far_off_stands_at_the_edge_and_is_counted() -> None:
    runs = [
        record(
            f"r{index}",
            0.95 + index / 3000,
            n=10**6,
            metrics={"kl_per_token": Measure(0.1 + index / 1e4), "base_preference_accuracy": Measure(0.5)},
            settings={"trainer.max_steps": index},
        )
        for index in range(60)
    ]
    html = render_page(build_comparison(runs, title="t"))
    trade_off = html[html.index("against KL per token of") :].partition("</svg>")[0]
    marks = re.findall(r'<path class="base value" d="M(\S+) (\S+?)l', trade_off)
    marks += re.findall(r'<text x="(\S+)" y="(\S+)"[^>]*>base</text>', trade_off)
    assert len(marks) == 2
    for x, y in marks:
        assert 58 <= float(x) <= 520 - 26
        assert 14 - 6 <= float(y) <= 380 - 46 + 4
    assert "Far-off points stand at the edge: 1." in html


@pytest.mark.parametrize("kls", [(0.0, 5e-324, 1e-310), (-1e300, 0.0, 1e300)])
def test_runs_whose_numbers_are_at_the_ends_of_floats_are_drawn(kls: tuple[float, ...]) -> None:
    curve = Curve(steps=[1.0, 2.0, 3.0], pairs=None, tokens=None, values=list(kls), num_logged=3)
    runs = [
        record(
            f"r{index}",
            metrics={"kl_per_token": Measure(kl)},
            settings={"algorithm.beta": kl},
            curves={"train:loss": curve},
        )
        for index, kl in enumerate(kls)
    ]
    html = render_page(build_comparison(runs, title="t"))
    assert not re.search(r"\b(nan|inf)\b", html)


def test_numbers_too_large_for_a_chart_are_left_out_of_a_comparison() -> None:
    assert from_report({"drift": {"kl_per_token": {"value": 1e305}}}).keys() == set()
    large = {"step": 1, "loss": 1e305}
    for content in (json.dumps(large), "\n".join([json.dumps(large)] * (ARROW_FROM // 20))):
        assert "loss" not in parse_log(f"{content}\n".encode()).last()


def two_runs(**changes: Any) -> str:
    """The page of two runs with wide intervals; `changes` go to both."""
    runs = [
        record(
            name,
            value,
            metrics={
                "preference_accuracy": Measure(value, value - 0.2, min(value + 0.2, 1.0)),
                "kl_per_token": Measure(kl, kl - 0.3, kl + 0.4),
                "base_preference_accuracy": Measure(0.5),
            },
            settings={"algorithm.beta": kl},
            **changes,
        )
        for name, value, kl in (("a", 0.9, 0.6), ("b", 0.51, 0.001))
    ]
    return render_page(build_comparison(runs, title="t"))


def test_the_axes_of_few_runs_hold_their_intervals() -> None:
    """A bar that is cut at the edge of the plot would show a narrower interval than was measured."""
    html = two_runs()
    bars = re.findall(r'<line x1="([^"]+)" y1="([^"]+)" x2="([^"]+)" y2="([^"]+)" class="bar"', html)
    assert len(bars) == 4
    for x1, y1, x2, y2 in (map(float, bar) for bar in bars):
        assert 58 < x1 <= x2 < 520 - 26
        assert 14 <= y2 <= y1 < 380 - 46
    widths = [float(x2) - float(x1) for x1, y1, x2, y2 in bars if y1 == y2]
    assert widths[0] == pytest.approx(widths[1], rel=1e-3), "both intervals are 0.7 wide"


def test_labels_of_two_points_near_the_base_lie_on_nothing() -> None:
    html = two_runs()
    trade_off = html[html.index("against KL per token of") :].partition("</svg>")[0]
    texts = re.findall(r'<text x="([^"]+)" y="([^"]+)"[^>]* class="(?:label|tick)">(1|2|base)</text>', trade_off)
    places = {content: (float(x), float(y)) for x, y, content in texts}
    assert set(places) == {"1", "2", "base"}
    assert abs(places["2"][0] - places["base"][0]) > 20 or abs(places["2"][1] - places["base"][1]) > 10


def test_ranks_at_the_end_of_parallel_lines_stand_apart() -> None:
    html = two_runs()
    parallel = html[html.index("Parallel coordinates of") :].partition("</svg>")[0]
    heights = [float(y) for y in re.findall(r'y="([^"]+)" text-anchor="start" class="label"', parallel)]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) >= 13


def test_a_curve_needs_two_points_and_what_was_measured_once_is_named() -> None:
    once = Curve(steps=[8.0], pairs=None, tokens=None, values=[0.5], num_logged=1)
    twice = Curve(steps=[4.0, 8.0], pairs=None, tokens=None, values=[0.7, 0.5], num_logged=2)
    html = two_runs(curves={"held_out:preference_accuracy": once, "train:loss": twice})
    assert html.count('<figure class="curves">') == 1
    assert "<b>Training loss</b>" in html
    assert "Measured once, so there is no curve: Held-out preference accuracy." in html
    assert "Measured once" not in two_runs(curves={"train:loss": twice})
    assert "Learning curves" not in two_runs()


def test_a_page_says_when_it_was_made() -> None:
    assert re.search(r"Made on 20\d\d-\d\d-\d\d \d\d:\d\d UTC\.", two_runs())


def test_no_style_of_the_reports_page_acts_on_the_table_of_a_comparison() -> None:
    """The bar of a report's seconds was cut and moved the intervals in the ranking."""
    html = two_runs()
    assert 'class="bar best' in html
    assert re.search(r"(^|})\s*\.bar\b", html, re.MULTILINE) is None


def test_a_path_in_relative_steps_comes_back_to_its_points() -> None:
    xs, ys = [0.2, 10.4, 30.0, 12.0], [5.0, -3.0, -3.4, 100.0]
    numbers = [int(number) for number in re.findall(r"-?\d+", path(xs, ys))]
    x, y = numbers[0], numbers[1]
    points = [(x, y)]
    for dx, dy in zip(numbers[2::2], numbers[3::2], strict=True):
        x, y = x + dx, y + dy
        points.append((x, y))
    assert points == [(round(a), round(b)) for a, b in zip(xs, ys, strict=True)]
    assert [int(number) for number in steps(xs).split()] == [0, 10, 20, -18]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (-3.2, 7.7),
        (-1e300, 1e300),
        (0, 5e-324),
        (1e-310, 2e-310),
        (0.91, 0.93),
        (1e-9, 2e-9),
        (0, 123456),
        (5, 5),
    ],
)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


@pytest.mark.parametrize("high", [1, 3, 7, 12, 23, 999])
def test_what_is_counted_has_whole_ticks(high: int) -> None:
    found = ticks(0, high, 5, is_whole=True)
    assert found == [round(tick) for tick in found]
    assert 2 <= len(found) <= 6


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (7.5, "7.5"), (9999, "9999"), (25_000, "25k"), (2.5e6, "2.5M"), (1e-5, "1e-05")]
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert tick_texts([value]) == [text]


@pytest.mark.parametrize("is_share", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.6929, 0.6931), (-1234.9, -1234.1), (-12345, -12340), (1e6, 1.0004e6), (104_000, 105_600), (-3e-7, 1.2e-6)],
)
def test_the_labels_of_an_axis_tell_its_ticks_apart(low: float, high: float, is_share: bool) -> None:
    found = ticks(low, high, 5)
    labels = tick_texts(found, is_share=is_share)
    assert len(set(labels)) == len(found) > 1


def test_the_labels_of_an_axis_have_the_digits_that_its_ticks_need() -> None:
    assert tick_texts([0.69290, 0.69295, 0.69300]) == ["0.6929", "0.69295", "0.693"]
    assert tick_texts([1e6, 1.0001e6]) == ["1M", "1.0001M"]
    assert tick_texts([0.0, 0.25, 0.5], is_share=True) == ["0 %", "25 %", "50 %"]


def test_large_numbers_of_an_axis_have_the_same_letter() -> None:
    assert tick_texts([0, 5000, 10_000]) == ["0", "5k", "10k"]
    assert tick_texts([0, 500_000, 1e6]) == ["0", "0.5M", "1M"]


def test_a_few_far_off_values_do_not_squeeze_a_chart() -> None:
    values = [index / 1000 for index in range(1000)]
    assert robust_range([*values, 1e9])[1] < 2
    low, high = robust_range(values)
    assert low < 0 < 0.999 < high


def test_labels_do_not_overlap_where_there_is_room() -> None:
    placed = spread_out([50, 50, 51, 10, 99, 99], 10, 0, 100)
    ordered = sorted(placed)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 100
    assert placed[3] == 10


def test_an_axis_has_a_place_for_each_of_few_values_and_none_for_a_missing_one() -> None:
    rows: list[dict[str, Any]] = [{"a.b": 0.3}, {"a.b": 0.1}, {}, {"a.b": 0.1}]
    axis = setting_axis("b", "a.b", rows)
    assert axis is not None
    assert axis.heights[2] is None
    assert axis.heights[1] == axis.heights[3] < axis.heights[0]
    assert [mark for _, mark in axis.marks] == ["0.1", "0.3"]
    assert setting_axis("b", "c.d", rows) is None
