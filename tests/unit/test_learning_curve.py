"""The statistics of learning curves: intervals that cover as often as they say, and how many prompts show a gain."""

import json
from collections.abc import Callable
from statistics import NormalDist
from xml.etree import ElementTree

import numpy as np
import pytest

from prefopt.evaluation.learning_curve import (
    LearningCurve,
    Trained,
    fit_learning_curve,
)
from prefopt.evaluation.statistics import change_of_share, detectable_gain, needed_pairs
from prefopt.reports.learning_curve import conclude, draw, list_lines, render_section

N = 720
SHARES = (0.125, 0.25, 0.5, 1.0)
NUM_DRAWS = 150
LEAST = NUM_DRAWS * (0.95 - 2.5 * (0.95 * 0.05 / NUM_DRAWS) ** 0.5)
"""A number that intervals of 95 % fall below once in 160 tests; with these seeds they do not."""
SPREAD = 1.2
"""Standard deviation of the prompts' difficulty, in units of the noise of a single answer."""


def draw_curve(
    accuracies: tuple[float, ...],
    rng: np.random.Generator,
    num_prompts: int = 132,
    num_seeds: int = 3,
    num_pairs: int = 1,
    seed_noise: tuple[float, ...] = (0.02, 0.015, 0.01, 0.007),
) -> LearningCurve:
    """A curve whose models have these accuracies over all prompts and seeds.

    A pair is right if the model's skill and the prompt's ease are above the pair's noise; so the prompts' results go
    together over all models. A seed changes the skill of every size.
    """
    ease = np.repeat(rng.standard_normal(num_prompts), num_pairs) * SPREAD
    points = []
    for share, accuracy, noise in zip(SHARES, accuracies, seed_noise, strict=True):
        for seed in range(num_seeds):
            reached = min(max(accuracy + noise * rng.standard_normal(), 0.001), 0.999)
            skill = NormalDist(0, (1 + SPREAD**2) ** 0.5).inv_cdf(reached)
            points.append(Trained(share, int(N * share), seed, skill + ease + rng.standard_normal(len(ease)) > 0))
    return fit_learning_curve(points, np.repeat(np.arange(num_prompts), num_pairs))


def curve_of(*hits: list[int]) -> LearningCurve:
    """A curve of one seed, whose models get these pairs right; each pair has a prompt of its own."""
    points = [
        Trained(share, int(N * share), 0, np.array(row, bool))
        for share, row in zip(SHARES[-len(hits) :], hits, strict=True)
    ]
    return fit_learning_curve(points, np.arange(len(hits[0])))


def errors_fall(doublings: float) -> float:
    """An accuracy that rises towards 90 %, as where a tenth of the labels is wrong, after so many doublings from N."""
    return 0.9 - 0.1 * 2 ** (-0.4 * doublings)


CURVES: dict[str, Callable[[float], float]] = {
    "flat": lambda doublings: 0.75,
    "a line": lambda doublings: 0.80 + 0.04 * doublings,
    "a power law": lambda doublings: 1 - 0.06 * 2 ** (-0.6 * doublings),
    "a power law with a floor": errors_fall,
}


@pytest.mark.parametrize("name", CURVES)
def test_the_intervals_cover_the_truth_with_three_seeds(name: str) -> None:
    rng, truth = np.random.default_rng(3), CURVES[name]
    accuracies = tuple(truth(doublings) for doublings in (-3.0, -2.0, -1.0, 0.0))
    true_values = {
        "smallest": accuracies[0],
        "largest": accuracies[-1],
        "last": accuracies[-1] - accuracies[-2],
        "doubling": truth(1) - truth(0),
    }
    covered = dict.fromkeys(true_values, 0)
    for _ in range(NUM_DRAWS):
        curve = draw_curve(accuracies, rng)
        smallest, *_, largest = (size.accuracy for size in curve.sizes)
        estimates = {"smallest": smallest, "largest": largest, "last": curve.last, "doubling": curve.doubling}
        for key, estimate in estimates.items():
            covered[key] += estimate.low <= true_values[key] <= estimate.high
    assert min(covered.values()) >= LEAST, covered


def test_the_intervals_cover_the_truth_where_the_seeds_decide_and_prompts_have_several_pairs() -> None:
    rng = np.random.default_rng(5)
    covered = [0, 0]
    for _ in range(NUM_DRAWS):
        curve = draw_curve((0.7, 0.7, 0.7, 0.7), rng, num_prompts=60, num_pairs=3, seed_noise=(0.05,) * 4)
        covered[0] += curve.sizes[-1].accuracy.low <= 0.7 <= curve.sizes[-1].accuracy.high
        covered[1] += curve.doubling.low <= 0.0 <= curve.doubling.high
    assert min(covered) >= LEAST, covered


def test_of_one_seed_a_difference_has_nearly_the_interval_of_paired_shares() -> None:
    before, after = [1] * 60 + [0] * 40, [1] * 55 + [0] * 5 + [1] * 15 + [0] * 25
    curve = curve_of(before, after)
    pair = change_of_share(np.array(before) > 0, np.array(after) > 0).estimate
    assert curve.last.value == pytest.approx(0.10)
    assert (curve.last.low, curve.last.high) == pytest.approx((pair.low, pair.high), abs=0.01)


def test_no_interval_has_the_width_zero_because_all_models_agree() -> None:
    curve = curve_of(*[[1] * 30] * 4)
    assert curve.sizes[0].accuracy.low < 0.95
    assert curve.sizes[0].accuracy.high == 1
    assert curve.last.low < -0.02
    assert curve.bend.low < 0 < curve.bend.high


def test_pairs_of_one_prompt_count_as_one_if_they_are_copies() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((4, 50)) < 0.7
    points = [Trained(share, int(N * share), 0, row) for share, row in zip(SHARES, hits, strict=True)]
    copies = [Trained(point.share, point.n, 0, np.repeat(point.hits, 3)) for point in points]
    once = fit_learning_curve(points, np.arange(50))
    thrice = fit_learning_curve(copies, np.repeat(np.arange(50), 3))
    for one, three in ((once.last, thrice.last), (once.doubling, thrice.doubling)):
        assert (three.value, three.low, three.high) == pytest.approx((one.value, one.low, one.high))
    assert thrice.needed == once.needed
    assert thrice.detectable == pytest.approx(once.detectable)


def test_a_curve_on_the_line_of_log_odds_expects_what_the_line_says() -> None:
    rights = [500, 667, 800, 889]  # of 1,000: odds of 1, 2, 4, 8
    curve = curve_of(*[[1] * right + [0] * (1000 - right) for right in rights])
    assert curve.shape == "straight"
    assert curve.doubling.value == pytest.approx(16 / 17 - 8 / 9, abs=2e-3)
    assert curve.predict(N) == pytest.approx(8 / 9, abs=2e-3)


def test_where_the_curve_flattens_the_last_doubling_is_the_most_that_is_promised() -> None:
    rights = [500, 800, 850, 860]
    curve = curve_of(*[[1] * right + [0] * (1000 - right) for right in rights])
    assert curve.shape == "flattening"
    assert curve.doubling.value == curve.last.value == pytest.approx(0.01)
    assert curve.expected.value > 0.03
    assert curve.doubling.low <= 0
    assert "at most" in conclude(curve)


def test_where_the_curve_gets_steeper_no_gain_is_promised() -> None:
    rights = [500, 505, 520, 850]
    curve = curve_of(*[[1] * right + [0] * (1000 - right) for right in rights])
    assert curve.shape == "steepening"
    assert "cannot be told" in conclude(curve)
    assert 'class="forecast"' not in draw(curve).svg


@pytest.mark.parametrize("rights", [(20, 50, 80, 98), (50, 51, 53, 99), (60, 90, 97, 98)])
def test_no_more_is_promised_than_is_left_up_to_all_pairs(rights: tuple[int, ...]) -> None:
    curve = curve_of(*[[1] * right + [0] * (100 - right) for right in rights])
    accuracy = curve.sizes[-1].accuracy
    assert curve.doubling.value <= 1 - accuracy.value + 1e-12
    assert curve.doubling.high <= 1 - accuracy.low + 1e-12
    assert curve.predict(2 * N) <= 1


@pytest.mark.parametrize(("gain", "discordant"), [(0.02, 0.05), (0.05, 0.15), (0.10, 0.25), (0.10, 0.05)])
def test_the_needed_pairs_show_the_gain_in_four_of_five_experiments(gain: float, discordant: float) -> None:
    rng = np.random.default_rng(1)
    num_pairs = int(np.ceil(needed_pairs(gain, discordant)))
    shown, differ = 0, max(gain, discordant)
    for _ in range(1000):
        wins, losses, _ = rng.multinomial(num_pairs, [(differ + gain) / 2, (differ - gain) / 2, 1 - differ])
        changes = np.repeat([1, -1, 0], [wins, losses, num_pairs - wins - losses])
        shown += change_of_share(changes < 0, changes > 0).p_value < 0.05
    assert shown / 1000 >= 0.77  # 80 % less two standard errors
    assert shown / 1000 <= 0.87 or discordant < gain  # of so few pairs, all in favour, the test shows a little more


def test_the_detectable_gain_is_the_one_whose_needed_pairs_are_at_hand() -> None:
    gain = detectable_gain(500, 0.2)
    assert needed_pairs(gain, 0.2) == pytest.approx(500, rel=1e-6)
    assert detectable_gain(2000, 0.2) < gain < detectable_gain(500, 0.3)
    assert detectable_gain(2, 0.5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("accuracies", "num_prompts", "words"),
    [
        ((0.8, 0.8, 0.8, 0.8), 2000, "more of the same data will hardly help"),
        ((0.6, 0.67, 0.735, 0.79), 2000, "more of the same data will help"),
        ((0.78, 0.79, 0.80, 0.81), 40, "cannot tell"),
    ],
)
def test_the_conclusion_says_no_more_than_the_interval(
    accuracies: tuple[float, ...], num_prompts: int, words: str
) -> None:
    quiet = (0.001,) * 4
    curve = draw_curve(accuracies, np.random.default_rng(2), num_prompts=num_prompts, seed_noise=quiet)
    assert words in conclude(curve)
    assert "Doubling to 1,440 pairs" in conclude(curve)


def test_the_written_curve_has_what_scripts_rely_on() -> None:
    curve = draw_curve((0.6, 0.7, 0.75, 0.8), np.random.default_rng(0))
    written = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert [size["n"] for size in written["by_n"]] == [90, 180, 360, 720]
    assert len(written["points"]) == 12
    assert {"n", "seed", "accuracy", "n_held_out"} <= set(written["points"][0])
    assert written["doubling"]["n"] == 1440
    assert written["doubling"]["ci95"][0] <= written["doubling"]["value"] <= written["doubling"]["ci95"][1]
    assert [entry["gain"] for entry in written["needed"]] == [0.01, 0.02, 0.05, 0.10]
    assert written["num_held_out_prompts"] == 132


def test_the_chart_is_whole_and_shades_only_what_lies_on_its_axis() -> None:
    curve = draw_curve((0.6, 0.7, 0.75, 0.8), np.random.default_rng(0))
    figure = draw(curve)
    drawn = ElementTree.fromstring(figure.svg)
    assert len(drawn.findall(".//circle[@class='seed']")) == 12
    assert len(drawn.findall(".//rect")) == 3
    large = [Trained(point.share, 100 * point.n, point.seed, point.hits) for point in curve.points]
    assert "<rect" not in draw(fit_learning_curve(large, np.arange(132))).svg


def test_the_page_and_the_terminal_show_the_same_numbers() -> None:
    curve = draw_curve((0.6, 0.7, 0.75, 0.8), np.random.default_rng(0))
    page, lines = render_section(curve), "\n".join(list_lines(curve))
    for size in curve.sizes:
        assert f"{100 * size.accuracy.value:.1f}" in page
        assert f"{100 * size.accuracy.value:.1f}" in lines
    for _, prompts in curve.needed:
        assert f"{prompts:,}" in page
        assert f"{prompts:,}" in lines
