"""What stops a run before it is spoilt, and what it says about the rows behind it."""

import logging
import math
from pathlib import Path

import pytest
import torch

from prefopt.training import guards
from prefopt.training.guards import MIN_SEEN, SHOWN_ROWS, WINDOW, DivergedError, Spikes, StepGuard

SOURCES = [f"pairs.jsonl:{line}" for line in range(1, 101)]


def guard_after(*forwards: tuple[float, list[int]]) -> StepGuard:
    guard = StepGuard(SOURCES, Path("no checkpoints"))
    for loss, rows in forwards:
        guard.note_forward(torch.tensor(loss), rows)
    return guard


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1, -1.0, torch.tensor(math.nan), torch.tensor(-1.0)])
def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_rows_of_its_step(norm):
    """DeepSpeed writes -1 for a norm that is not finite."""
    guard = guard_after((0.6, [6, 2]), (0.7, [4]))
    with pytest.raises(DivergedError) as error:
        guard.check_gradient(norm, 12)
    message = str(error.value)
    assert message.startswith("step 12: the gradient is not finite, and was not used; the cause is in this step, ")
    assert "pairs.jsonl:3, pairs.jsonl:5, pairs.jsonl:7." in message
    assert message.endswith("or look at these rows; no checkpoint was saved before, so a run begins again.")


@pytest.mark.parametrize(
    ("files", "expected"), [(["COMPLETE"], "the last checkpoint is good."), ([], "begins again.")]
)
def test_a_checkpoint_is_called_good_only_if_there_is_one(files, expected, tmp_path):
    (tmp_path / "step-4").mkdir()
    for file in files:
        (tmp_path / "step-4" / file).touch()
    guard = StepGuard(SOURCES, tmp_path)
    guard.note_forward(torch.tensor(0.6), [6])
    assert str(guard.diverged(5)).endswith(expected)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_only_the_rows_of_the_forward_that_is_not_finite_are_named(loss):
    guard = guard_after((0.6, [6, 2]), (loss, [9, 0]))
    with pytest.raises(DivergedError, match=r"is among these rows: pairs\.jsonl:1, pairs\.jsonl:10\. "):
        guard.check_gradient(math.nan, 1)


@pytest.mark.parametrize("norm", [0, 0.0, 3.5, 1e30, torch.tensor(2.0)])
def test_a_finite_gradient_passes(norm):
    guard_after((0.6, [6])).check_gradient(norm, 1)


def test_a_loss_that_is_not_finite_is_seen_until_the_step_ends():
    guard = guard_after((0.6, [6]), (math.nan, [1]))
    assert guard.has_bad_loss()
    message = str(guard.diverged(3))
    assert "step 3: the loss is not finite, though its gradient is; the cause is among these rows: pairs.j" in message
    guard.end_step()
    assert not guard.has_bad_loss()
    assert guard.rows == []


def test_a_forward_of_filling_adds_no_row_to_a_step():
    guard = guard_after((0.6, [6, 2]), (0.0, []))
    assert guard.rows == [6, 2]
    assert not guard.has_bad_loss()


def test_rows_of_all_ranks_are_named_in_the_order_of_the_file(monkeypatch):
    """Rank 0 shows the message, also when the rows are another rank's."""
    guard = guard_after((0.6, [3]))
    monkeypatch.setattr(guards, "gather", lambda value: [value, [8, 1]])
    assert "among these rows: pairs.jsonl:2, pairs.jsonl:9." in str(guard.diverged(1))


def test_many_rows_are_counted_not_listed():
    guard = guard_after((math.nan, list(range(SHOWN_ROWS + 5))))
    message = str(guard.diverged(1))
    assert message.count("pairs.jsonl:") == SHOWN_ROWS
    assert " and 5 more." in message


def warnings_of(caplog: pytest.LogCaptureFixture, values: list[float]) -> list[str]:
    caplog.clear()
    caplog.set_level(logging.WARNING)
    spikes = Spikes("grad_norm")
    for step, value in enumerate(values, start=1):
        spikes.note(value, step)
    return [record.getMessage() for record in caplog.records]


def steady(number: int) -> list[float]:
    """Norms of healthy training: positive, a tenth of their mean up and down."""
    return (1 + 0.1 * torch.randn(number, generator=torch.Generator().manual_seed(0))).tolist()


def test_a_spike_is_warned_of_once_by_step_and_value(caplog):
    (message,) = warnings_of(caplog, [*steady(30), 40.0, *steady(200)])
    assert message.startswith("step 31: grad_norm is 40, far above its mean of ")


def test_steady_values_are_no_spikes(caplog):
    assert warnings_of(caplog, steady(2000)) == []


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 30 + [1.9],
        [0.0] * 30,
        [0.5 * 0.98**step for step in range(300)],
        [0.01 * step for step in range(300)],
        [*steady(30), 0.0],
    ],
    ids=["less than twice a constant", "zero", "falling", "rising slowly", "a drop"],
)
def test_what_training_does_without_harm_is_no_spike(caplog, values):
    assert warnings_of(caplog, values) == []


def test_a_spike_needs_something_to_compare_with(caplog):
    assert warnings_of(caplog, [*steady(MIN_SEEN - 1), 1e6]) == []
    assert len(warnings_of(caplog, [*steady(MIN_SEEN), 1e6])) == 1


def test_a_new_level_is_warned_of_until_the_window_knows_it(caplog):
    found = warnings_of(caplog, [*steady(WINDOW), *[10 * value for value in steady(3 * WINDOW)]])
    assert 1 <= len(found) <= 3


def test_gradients_and_losses_are_watched_apart(caplog):
    caplog.set_level(logging.WARNING)
    guard = StepGuard(SOURCES, Path("no checkpoints"))
    for step in range(1, 21):
        guard.check_gradient(100.0, step)
        guard.note_loss(0.7, step)
    guard.note_loss(70.0, 21)
    (record,) = caplog.records
    assert record.getMessage().startswith("step 21: loss is 70, far above its mean of 0.7")
