"""The count of what the host asks for in a step, and its promise: less than TRL, and nothing that it waits for."""

import pytest

from benchmarks import dispatch

pytestmark = pytest.mark.slow


def test_a_step_asks_for_fewer_operations_than_trl_and_waits_for_none(tmp_path):
    plain, ours, plain_fused, fused = (
        dispatch.count("256/96", 4, name=name, is_fused=is_fused, folder=str(tmp_path))
        for is_fused in (False, True)
        for name in (dispatch.TRL, dispatch.OURS)
    )
    assert ours.operations <= 0.95 * plain.operations
    assert ours.per_layer < plain.per_layer
    assert fused.operations <= 0.6 * plain.operations
    assert fused.operations < plain_fused.operations
    assert ours.item == ours.nonzero == fused.item == fused.nonzero == 0
    assert plain.item > 10
    assert plain.nonzero > 1, "the count sees them"
