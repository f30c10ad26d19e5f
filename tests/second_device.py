"""A second device without a GPU: tensors that compute on the CPU, but are not on it as far as anyone can tell.

A tensor that was moved there, or was made there, says that its device is `meta`. An operation that mixes such tensors
with a CPU tensor of at least one dimension is refused, as CUDA refuses it. So a run under `second_device` shows on any
machine what a batch, a mask or an index left behind would do on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import TrainingArguments

DEVICE = torch.device("meta")
"""The one kind of device that torch knows everywhere and that nothing else uses here."""
aten = torch.ops.aten
MOVES = {aten._to_copy, aten.copy_, aten.to}
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.item}
"""Operations whose result the host waits for."""


class LeftBehindError(AssertionError):
    """An operation got tensors of both devices."""


class Away(torch.Tensor):
    """A tensor on the second device; `data_here` holds its values."""

    data_here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> "Away":
        place = {"strides": data.stride(), "storage_offset": data.storage_offset(), "dtype": data.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, data.size(), **place, device=DEVICE)
        tensor.data_here = data
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Away({self.data_here})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor of the second device has no numpy array")


class Host(TorchDispatchMode):
    """The side of the host.

    Attributes:
        num_waits: How often it waited for the device: it read a value, or asked how many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        if any(isinstance(leaf, Away) for leaf in leaves):
            self.num_waits += func.overloadpacket in READS or _has_mask(func, leaves) or _comes_back(func, leaves)
        return _compute(func, args, kwargs or {})


def _has_mask(func: Any, leaves: list[Any]) -> bool:
    indices = leaves[1:] if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else []
    return any(isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in indices)


def _comes_back(func: Any, leaves: list[Any]) -> bool:
    if func.overloadpacket is aten.copy_:
        return not isinstance(leaves[0], Away)
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    return func.overloadpacket in MOVES and any(device.type == "cpu" for device in devices)


class _Autocast(torch.autocast):
    """Mixed precision is the CPU's: torch has none for the second device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_type_here(device_type), *args, **kwargs)


def _type_here(device_type: str) -> str:
    return "cpu" if device_type == DEVICE.type else device_type


@contextmanager
def second_device() -> Iterator[Host]:
    """Everything that a run moves to its device goes to the second one."""
    initialise, make, make_generator = PartialState.__init__, torch.tensor, torch.Generator

    def with_device(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.device = DEVICE

    def device(self: Any) -> torch.device:
        assert self._setup_devices.type == "cpu", "it also sets up more"
        return DEVICE

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        wanted = kwargs.pop("device", None)  # with a device it would pass by the mode
        made = make(*args, **kwargs)
        return made if wanted is None else made.to(wanted)

    def generator(device: Any = "cpu") -> torch.Generator:
        return make_generator(_type_here(torch.device(device).type))

    def of_cpu(ask: Any) -> Any:
        return lambda device_type="cuda": ask(_type_here(device_type))

    with (
        mock.patch.object(PartialState, "__init__", with_device),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(TrainingArguments, "device", property(device)),
        mock.patch("prefopt.models.load.choose_device", return_value=DEVICE),
        mock.patch.object(torch, "Generator", generator),
        mock.patch.object(torch, "inference_mode", torch.no_grad),  # such tensors cannot be wrapped once more
        mock.patch.object(torch, "autocast", _Autocast),
        mock.patch.object(torch, "is_autocast_enabled", of_cpu(torch.is_autocast_enabled)),
        mock.patch.object(torch, "get_autocast_dtype", of_cpu(torch.get_autocast_dtype)),
        Host() as host,
    ):
        yield host


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    goes_away = any(isinstance(tensor, Away) for tensor in tensors)
    left = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, Away) and tensor.dim()]
    if goes_away and left and func.overloadpacket not in MOVES:
        raise LeftBehindError(f"{func}: on the device are some of its tensors, and on the CPU those of shape {left}")
    for device in leaves:
        if isinstance(device, torch.device):
            goes_away = device.type == DEVICE.type
    made = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if func._schema.is_mutable and isinstance(made, torch.Tensor) and func._schema.name.endswith("_"):
        return args[0]
    return tree_map(_away, made) if goes_away else made


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.data_here if isinstance(value, Away) else value


def _away(value: Any) -> Any:
    return Away(value) if isinstance(value, torch.Tensor) else value
