"""Numbers that stay on the device until they are needed.

To read a number from a GPU the host waits until the GPU has done all that it was asked to do, and then has nothing
queued. TRL's loss functions read a dozen in every forward, for metrics that are logged every few steps. Under
`deferred_reads` they get a `Deferred` in place of each, and all are read at once when a line is logged.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Deferred:
    """A number that is computed from tensors of one element, once somebody needs it."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], compute: Callable[[Sequence[float]], float]) -> None:
        self.tensors = tensors
        self.compute = compute
        """From the values of `tensors` to this number."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Deferred":
        """The element of a tensor that holds one."""
        return cls((tensor.detach(),), operator.itemgetter(0))

    def __mul__(self, other: "Number") -> "Deferred":
        return self._with(other, operator.mul)

    def __truediv__(self, other: "Number") -> "Deferred":
        return self._with(other, operator.truediv)

    def __floordiv__(self, other: "Number") -> "Deferred":
        return self._with(other, operator.floordiv)

    def __radd__(self, other: "Number") -> "Deferred":
        return self._with(other, operator.add)

    def __gt__(self, other: "Number") -> bool:
        """True: TRL asks whether a count is above zero before it divides by it; a mean of no tokens is never read."""
        assert other == 0, "only the question that TRL asks has a known answer"
        return True

    def _with(self, other: "Number", combine: Callable[[float, float], float]) -> "Deferred":
        if not isinstance(other, Deferred):
            return Deferred(self.tensors, lambda values: combine(self.compute(values), other))
        split = len(self.tensors)
        return Deferred(
            self.tensors + other.tensors,
            lambda values: combine(self.compute(values[:split]), other.compute(values[split:])),
        )


Number = float | Deferred


def read(numbers: Iterable[Number]) -> list[float]:
    """The values of numbers, in their order; the device is waited for once."""
    numbers = list(numbers)
    tensors = [tensor for number in numbers if isinstance(number, Deferred) for tensor in number.tensors]
    values = torch.stack([tensor.double().reshape(()) for tensor in tensors]).tolist() if tensors else []
    results, start = [], 0
    for number in numbers:
        if isinstance(number, Deferred):
            end = start + len(number.tensors)
            results.append(number.compute(values[start:end]))
            start = end
        else:
            results.append(number)
    return results


@contextmanager
def deferred_reads(function: Callable[..., Any]) -> Iterator["Reads"]:
    """In this block `function` gets a `Deferred` where it reads a number from a tensor.

    What it does itself is meant, not what it calls. Two more of its habits would make the host wait. A question for a
    count above zero is answered with yes. Values without gradient that it picks by a mask, to sum them up, are not
    picked: TRL's per-token results are zero outside of the completions. So this is for training alone, where what a
    loss is computed from has a gradient: the mean over picked values would be another one.
    """
    with Reads(function.__code__) as reads:
        yield reads


class Reads(TorchFunctionMode):
    """See `deferred_reads`."""

    def __init__(self, code: CodeType) -> None:
        super().__init__()
        self._code = code

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__getitem__) and self._is_asked():
            if func is torch.Tensor.item:
                return Deferred.of(args[0])
            if func is torch.Tensor.__bool__:
                return True
            values, index = args
            if isinstance(index, torch.Tensor) and index.dtype is torch.bool and not values.requires_grad:
                return values
        return func(*args, **kwargs or {})

    def _is_asked(self) -> bool:
        return sys._getframe(2).f_code is self._code

    def suspended(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, in which nothing is deferred, and nothing slowed down by asking whether it is."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            try:
                return function(*args, **kwargs)
            finally:
                self.__enter__()  # type: ignore[no-untyped-call]

        return call
