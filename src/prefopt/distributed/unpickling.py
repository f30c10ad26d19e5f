"""Safe loading of checkpoints: their pickles may create only data and a few classes of DeepSpeed and numpy.

A pickle can run any code when it is loaded, and DeepSpeed loads its files without restriction (`weights_only=False`).
Checksums do not help if an attacker wrote the checkpoint together with its checksums. So prefopt loads checkpoints
only within `data_only()`, and refuses a file that names anything else before training begins.
"""

import copyreg
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
"""Names in the pickle of a random state of numpy."""
FORCE, NO_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variables that override the argument `weights_only` of every `torch.load`."""


def find_code(folder: Path, names: Iterable[str]) -> str | None:
    """Says which file of a checkpoint is unreadable or would run code when loaded; None if all hold only data."""
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
def written_as_data() -> Iterator[None]:
    """Lets DeepSpeed's stage be pickled by its value, as newer Pythons do: 3.11.2 pickles a call of `getattr`."""
    stage = _resolve("deepspeed.runtime.zero.config.ZeroStageEnum")
    before = copyreg.dispatch_table.get(stage)
    copyreg.pickle(stage, lambda member: (type(member), (member.value,)))
    try:
        yield
    finally:
        copyreg.dispatch_table.pop(stage, None)
        if before is not None:
            copyreg.dispatch_table[stage] = before


@contextmanager
def data_only() -> Iterator[None]:
    """Restricts every `torch.load` in the block, also within libraries, to data and the classes above."""
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
