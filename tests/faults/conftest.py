"""One arena for all tests of faults: undisturbed runs are shared."""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.harness import Arena, mounted
from tests.zygote import Zygote

pytest.importorskip("deepspeed")


@pytest.fixture(scope="session")
def arena(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pair_files: tuple[Path, Path]
) -> Arena:
    return Arena(zygote, tmp_path_factory.mktemp("faults"), tiny_model, pair_files)


@pytest.fixture
def mount(arena: Arena) -> Callable[..., AbstractContextManager[Path]]:
    """`harness.mounted`, where this process may mount."""
    try:
        with mounted(arena.new_folder()):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")
    return mounted
