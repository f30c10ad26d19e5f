"""A process that was killed while it loaded or built DeepSpeed's operations is in nobody's way."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("deepspeed")

LOAD = "from prefopt.distributed.native_ops import load_adam; load_adam()"
BROKEN_BUILD = f"""
import os
from deepspeed.ops.op_builder import CPUAdamBuilder
def killed(self, verbose):
    folder = os.environ["TORCH_EXTENSIONS_DIR"] + "/" + self.name
    os.mkdir(folder)
    open(folder + "/lock", "w").close()
    os._exit(9)
CPUAdamBuilder.load = killed
{LOAD}
"""


def python(code: str, extensions: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "DS_ACCELERATOR": "cpu",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_after_a_killed_build_and_a_killed_load_the_next_process_loads(tmp_path):
    assert python(BROKEN_BUILD, tmp_path).returncode == 9
    (versions,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.name[:9] for path in versions.iterdir() if path.is_dir()] == ["building-"]

    rebuilt = python(LOAD, tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "killed while it built an operation; removed" in rebuilt.stderr
    assert [path.name for path in versions.iterdir() if path.is_dir()] == ["cpu_adam"]

    (versions / "cpu_adam" / "lock").touch()
    loaded = python(LOAD, tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    assert "removed" in loaded.stderr
    assert not (versions / "cpu_adam" / "lock").exists()


def test_without_a_compiler_the_message_says_what_to_install(tmp_path):
    code = f"import os; os.environ['CXX'] = '/nowhere/c++'; os.environ['CC'] = '/nowhere/cc'\n{LOAD}"
    failed = python(code, tmp_path)
    assert failed.returncode == 1
    assert "UserError: deepspeed.offload_optimizer=cpu needs DeepSpeed's CPU Adam" in failed.stderr
    assert "Install a C++ compiler and ninja, or choose a deepspeed option without offload." in failed.stderr
