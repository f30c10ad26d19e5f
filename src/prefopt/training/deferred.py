"""Numbers that stay on the device until they are needed.

Reading a number from a GPU makes the host wait until the GPU has finished all queued work; the GPU then idles. TRL's
loss functions read a dozen numbers in every forward, for metrics that are logged every few steps. Under
`deferred_reads` they get a `Deferred` in place of each number, and all are read at once when a line is logged.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")


class Deferred:
    """A number that is computed from one-element tensors when it is read (see `read`)."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], compute: Callable[[Sequence[float]], float]) -> None:
        self.tensors = tensors
        self.compute = compute
        """Computes this number from the values of `tensors`."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Deferred":
        """Returns the deferred value of a one-element tensor."""
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
        """Returns True. TRL tests that a count is > 0 before it divides by it; a mean of no tokens is never read."""
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
    """Returns the values of numbers, in their order; the host waits for the device once."""
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
def deferred_reads(function: Callable[..., object]) -> Iterator["Reads"]:
    """In this block `function` gets a `Deferred` where it reads a number from a tensor.

    Only reads in the code of `function` itself are deferred, not those in functions that it calls. Two more of its
    operations would make the host wait. A test of a tensor's truth, such as count > 0, returns True. Indexing with a
    boolean mask, which `function` does before it sums, returns all values if they have no gradient: TRL's per-token
    results are zero outside of the completions, so the sum is the same. Use it in training only: there the values of
    the loss have a gradient and are selected as usual; without a gradient, the loss would be a mean over all values.
    """
    with Reads(function.__code__) as reads:
        yield reads


class Reads(TorchFunctionMode):
    """The torch function mode behind `deferred_reads`."""

    def __init__(self, code: CodeType) -> None:
        super().__init__()
        self._code = code

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
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

    def suspended(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wraps a function so that this mode is off while it runs: no read is deferred, and no call is slowed down."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            try:
                return function(*args, **kwargs)
            finally:
                self.__enter__()  # type: ignore[no-untyped-call]

        return call
