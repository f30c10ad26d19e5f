"""Numbers that a function would read from a device are read later, all at once, and are the same."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.training.deferred import Deferred, deferred_reads, read


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, and how often it is asked where a mask is true."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.index.Tensor)
        return func(*args, **kwargs or {})


def metrics(values, mask):
    total = mask.sum()
    mean = (values.sum() / total).item() if total > 0 else 0.0
    picked, count = values[mask].sum().item(), mask.sum().item()
    average = picked / count if count > 0 else 0.0
    return mean, average, 3 + count // 2


VALUES = torch.tensor([[1.5, 0.0, 4.0], [0.0, 2.0, -8.0]])
MASK = torch.tensor([[True, False, True], [False, True, True]])


def test_deferred_numbers_are_those_that_would_have_been_read():
    expected = metrics(VALUES, MASK)
    with Reads() as reads:
        with deferred_reads(metrics):
            found = metrics(VALUES, MASK)
        assert reads.count == 0
        assert all(isinstance(number, Deferred) for number in found)
    assert read(found) == list(expected)


def test_many_numbers_are_read_at_once():
    numbers = [Deferred.of(torch.tensor(2.5)), 7.0, Deferred.of(torch.tensor(3)) * 2 / Deferred.of(torch.tensor(4.0))]
    with Reads() as reads:
        assert read(numbers) == [2.5, 7.0, 1.5]
    assert reads.count <= 3, "tolist of one tensor with three elements"
    assert read([]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-45, 16777217])
def test_no_bit_is_lost_on_the_way(value):
    tensor = torch.tensor(value)
    assert repr(read([Deferred.of(tensor)])[0]) == repr(float(tensor.item()))


def test_what_is_read_later_is_the_value_of_now():
    tensor = torch.tensor(1.0, requires_grad=True)
    number = Deferred.of(tensor * 2)
    with torch.no_grad():
        tensor.fill_(5.0)
    assert read([number]) == [2.0]


def test_only_the_function_itself_defers_and_not_what_it_calls():
    def outer(values, mask):
        return metrics(values, mask), values.sum().item()

    with deferred_reads(outer):
        inner, own = outer(VALUES, MASK)
    assert inner == metrics(VALUES, MASK)
    assert isinstance(own, Deferred)


def test_a_suspended_function_reads_at_once_and_an_error_in_it_changes_nothing():
    def read_sum(values):
        return values.sum().item()

    def fail(values):
        raise KeyboardInterrupt

    with deferred_reads(read_sum) as reads:
        assert reads.suspended(read_sum)(VALUES) == -0.5
        with pytest.raises(KeyboardInterrupt):
            reads.suspended(fail)(VALUES)
        assert isinstance(read_sum(VALUES), Deferred)
    assert read_sum(VALUES) == -0.5, "the block has ended"


def test_what_has_a_gradient_is_picked_as_ever():
    def function(values, mask):
        return values[mask].mean()

    values = VALUES.clone().requires_grad_()
    with deferred_reads(function):
        found = function(values, MASK)
    found.backward()
    assert found.item() == -0.125
    assert values.grad.tolist() == [[0.25, 0, 0.25], [0, 0.25, 0.25]]
