"""Metrics between two log lines: means over examples, for any division among forwards, ranks and attempts."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.training import window as module
from prefopt.training.window import MetricsWindow

values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def fill(window: MetricsWindow, forwards: list[list[float]]) -> None:
    for forward in forwards:
        window.add("loss", sum(forward), len(forward))
        window.add_tokens(10 * len(forward))


def split(values: list[float], sizes: list[int]) -> list[list[float]]:
    bounds = np.cumsum(sizes) % (len(values) + 1)
    return [part.tolist() for part in np.split(np.array(values), np.sort(bounds))]


@pytest.fixture
def close_together(monkeypatch):
    """Closes the windows of several ranks, as each of them sees it."""

    def close(windows: list[MetricsWindow]) -> list[dict[str, float]]:
        states = [window.state() for window in windows]
        monkeypatch.setattr(module, "gather", lambda value: states)
        return [window.close() for window in windows]

    return close


@given(values, st.lists(st.integers(0, 9), max_size=6))
@settings(deadline=None)
def test_a_mean_is_over_examples_however_they_came(values: list[float], sizes: list[int]) -> None:
    window = MetricsWindow()
    fill(window, split(values, sizes))
    closed = window.close()
    assert closed["loss"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)  # a sum of at most 30 doubles
    assert closed["num_tokens"] == 10 * len(values)


def test_each_metric_has_its_own_count():
    window = MetricsWindow()
    window.add("loss", 3.0, 2)
    window.add("entropy", 8.0, 16)
    window.add("loss", 6.0, 1)
    window.add("unseen", 0.0, 0)
    assert window.close() == {"loss": 3.0, "entropy": 0.5, "num_tokens": 0}


def test_closing_starts_afresh_but_tokens_count_on():
    window = MetricsWindow()
    fill(window, [[1.0, 3.0]])
    assert window.close() == {"loss": 2.0, "num_tokens": 20}
    assert window.close() == {"num_tokens": 20}
    fill(window, [[5.0]])
    assert window.close() == {"loss": 5.0, "num_tokens": 30}


def test_the_mean_over_ranks_weighs_examples_and_is_the_same_on_all(close_together):
    windows = [MetricsWindow(), MetricsWindow(), MetricsWindow()]
    for window, forwards in zip(windows, [[[1.0, 2.0, 3.0]], [[10.0]], []], strict=True):
        fill(window, forwards)
    windows[1].add("only here", 4.0, 2)
    assert close_together(windows) == [{"loss": 4.0, "only here": 2.0, "num_tokens": 40}] * 3
    assert close_together(windows) == [{"num_tokens": 40}] * 3


@pytest.mark.parametrize("num_after", [1, 2, 3, 5])
@pytest.mark.parametrize("num_before", [1, 2, 3, 4])
def test_a_window_goes_on_over_another_number_of_ranks(close_together, num_before, num_after):
    """What the checkpoint holds of every rank is held by some rank afterwards, and once."""
    before = [MetricsWindow() for _ in range(num_before)]
    for rank, window in enumerate(before):
        fill(window, [[float(rank)] * (rank + 1)])
        window.add(f"of {rank}", 1.0, 4)
    states: list[dict[str, Any]] = json.loads(json.dumps([window.state() for window in before]))
    after = [MetricsWindow() for _ in range(num_after)]
    for rank, window in enumerate(after):
        window.load(states, rank=rank, num_ranks=num_after)
    (undisturbed, *_), (found, *_) = close_together(before), close_together(after)
    assert found == undisturbed
    assert found["num_tokens"] == 10 * sum(range(1, num_before + 1))


def test_the_same_rank_goes_on_bitwise():
    """Through JSON, since a checkpoint's manifest is JSON; the next log line must be that of an undisturbed run."""
    window, resumed = MetricsWindow(), MetricsWindow()
    fill(window, [[0.1] * 3, [1 / 3]])
    resumed.load(json.loads(json.dumps([window.state()])), rank=0, num_ranks=1)
    assert resumed.state() == window.state()
    for each in (window, resumed):
        fill(each, [[0.7, 1e-9]])
    assert resumed.close() == window.close()


def test_loading_replaces_what_was_there():
    window, other = MetricsWindow(), MetricsWindow()
    fill(window, [[9.0]])
    fill(other, [[1.0]])
    window.load([other.state()], rank=0, num_ranks=1)
    assert window.close() == {"loss": 1.0, "num_tokens": 10}


def test_a_state_does_not_change_with_the_window():
    window = MetricsWindow()
    fill(window, [[1.0]])
    state = window.state()
    fill(window, [[2.0]])
    assert state == {"sums": {"loss": 1.0}, "counts": {"loss": 1}, "tokens": 10}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_survives_a_manifest(value):
    """A manifest is strict JSON, and a metric beside the loss may not be finite."""
    window, resumed = MetricsWindow(), MetricsWindow()
    window.add("logits/chosen", value, 2)
    resumed.load(json.loads(json.dumps([window.state()], allow_nan=False)), rank=0, num_ranks=1)
    assert repr(resumed.close()) == repr(window.close())


def test_tokens_of_all_ranks_can_be_counted_without_a_log_line():
    window = MetricsWindow()
    fill(window, [[1.0, 3.0]])
    assert window.count_tokens() == 20
    assert window.close() == {"loss": 2.0, "num_tokens": 20}
