"""DeepSpeed's compiled operations: built once per machine, and not blocked by a build that was killed.

torch guards a build by a lock file, which a killed process leaves behind, so that every later process waits forever.
Here the guard is a lock of the kernel (flock), which ends with its process, and only a complete build becomes visible.
"""

import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from deepspeed.ops.op_builder.builder import OpBuilder

logger = logging.getLogger(__name__)

VARIABLE = "TORCH_EXTENSIONS_DIR"


def leave_out_shared_memory() -> None:
    """Keeps DeepSpeed from compiling its shared memory communication, which takes half a minute on a new machine.

    Ranks on CPUs compile it when they start, but only tensor-parallel inference uses it: ZeRO uses Gloo (0.19).
    """
    import deepspeed.ops
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def load_adam() -> None:
    """Loads DeepSpeed's optimizer that steps in host memory; compiles it first if needed.

    Raises:
        UserError: It cannot be compiled on this machine.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        _build(CPUAdamBuilder())
    except Exception as error:  # compilers fail in many ways, and the user can fix all of them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"deepspeed.offload_optimizer=cpu needs DeepSpeed's CPU Adam, which cannot be built here ({lines[0]}). "
            "Install a C++ compiler and ninja, or choose a deepspeed option without offload."
        ) from error


def _build(builder: "OpBuilder") -> None:
    """Loads an operation, and builds it first if needed; DeepSpeed's own call to load it then finds it loaded."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        for lost in (*folder.glob("*/lock"), *folder.glob("building-*")):
            logger.warning("%s is left of a process that was killed while it built an operation; removed", lost)
            lost.unlink() if lost.is_file() else shutil.rmtree(lost, ignore_errors=True)
        if (folder / builder.name).exists():
            with _extensions_in(folder):
                builder.load(verbose=False)
            return
        aside = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
        try:
            with _extensions_in(aside):
                builder.load(verbose=False)
            if (aside / builder.name).exists():  # absent if DeepSpeed was installed with it prebuilt
                os.rename(aside / builder.name, folder / builder.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _folder() -> Path:
    """The folder of builds for the installed versions: a build for one torch does not load in another."""
    import deepspeed
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get(VARIABLE) or get_default_build_root()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Path(root) / f"prefopt-python-{python}-torch-{torch.__version__}-deepspeed-{deepspeed.__version__}"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with (folder / ".guard").open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s has no file locks (%s): ranks that build at the same time may disturb", folder, error)
        yield


@contextmanager
def _extensions_in(folder: Path) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
