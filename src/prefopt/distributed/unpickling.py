"""What the pickles of a checkpoint may make: data, and the few classes that DeepSpeed and numpy put there.

A pickle can run any code when it is loaded, and DeepSpeed loads its files without asking (`weights_only=False`). Sums
do not help against a checkpoint that somebody else has sealed. So whatever loads a checkpoint here does it within
`data_only()`, and a file that names anything else is refused before training begins.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
OF_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
OF_NUMPY = ("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType")
"""How a random state of numpy is stored."""
FORCE, NO_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch asks these at every `torch.load`, whatever its caller wants."""


def find_code(folder: Path, names: Iterable[str]) -> str | None:
    """Says which file of a checkpoint names what no checkpoint needs; None if all of them hold data alone."""
    for name in names:
        if not name.endswith(ENDINGS):
            continue
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(str(folder / name))
        except (ValueError, RuntimeError) as error:
            return f"{name} is no file of torch.save ({str(error).splitlines()[0]})"
        strange = sorted(set(found) - {*OF_DEEPSPEED, *OF_NUMPY})
        if strange:
            return f"{name} would call {', '.join(strange)} when it is loaded"
    return None


@contextmanager
def data_only() -> Iterator[None]:
    """Lets no `torch.load` of the block, whoever calls it, make anything but data and the classes above."""
    names = (*OF_NUMPY, *(OF_DEEPSPEED if find_spec("deepspeed") is not None else ()))
    before = {name: os.environ.pop(name, None) for name in (FORCE, NO_FORCE)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([_resolve(name) for name in names]):
            yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)
