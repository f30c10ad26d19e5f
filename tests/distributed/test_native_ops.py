"""A process that was killed while it loaded or built one of DeepSpeed's operations is in nobody's way."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.distributed import native_ops
from prefopt.distributed.native_ops import VARIABLE
from tests.conftest import REPOSITORY

pytest.importorskip("deepspeed")


class Builder:
    """Builds as torch does: into a folder of its own, which a lock guards as long as that takes.

    Attributes:
        num_built: How often it has compiled.
    """

    name = "operation"

    def __init__(self, *, is_killed: bool = False) -> None:
        self.num_built = 0
        self._is_killed = is_killed

    def load(self, verbose: bool) -> None:
        folder = Path(os.environ[VARIABLE]) / self.name
        folder.mkdir(exist_ok=True)
        lock = folder / "lock"
        assert not lock.exists(), "torch would wait here for ever"
        lock.touch()
        if self._is_killed:
            raise KeyboardInterrupt
        if not (folder / "compiled").exists():
            self.num_built += 1
            (folder / "compiled").touch()
        lock.unlink()


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return native_ops._folder()


def leave_killed_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves what a killed process does: nothing that it would have removed is."""
    with monkeypatch.context() as patch:
        patch.setattr(native_ops.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            native_ops._build(Builder(is_killed=True))
    assert [path.name[:9] for path in folder.iterdir() if path.is_dir()] == ["building-"]


def test_after_a_killed_build_the_next_process_builds_once(extensions, monkeypatch, caplog):
    leave_killed_build(extensions, monkeypatch)
    builder = Builder()
    with caplog.at_level(logging.WARNING, logger=native_ops.__name__):
        native_ops._build(builder)
        native_ops._build(builder)
    assert builder.num_built == 1
    assert [path.name for path in extensions.iterdir() if path.is_dir()] == ["operation"]
    assert caplog.text.count("killed while it built an operation; removed") == 1


def test_a_lock_that_a_killed_load_left_is_removed(extensions, caplog):
    native_ops._build(Builder())
    (extensions / "operation" / "lock").touch()
    builder = Builder()
    with caplog.at_level(logging.WARNING, logger=native_ops.__name__):
        native_ops._build(builder)
    assert builder.num_built == 0
    assert "lock is left of a process that was killed" in caplog.text


def test_a_build_that_fails_leaves_nothing(extensions):
    with pytest.raises(KeyboardInterrupt):
        native_ops._build(Builder(is_killed=True))
    assert [path for path in extensions.iterdir() if path.is_dir()] == []


def test_without_a_compiler_the_message_says_what_to_install(tmp_path):
    code = (
        "import os; os.environ['CXX'] = '/nowhere/c++'; os.environ['CC'] = '/nowhere/cc'\n"
        "from prefopt.distributed.native_ops import load_adam; load_adam()"
    )
    environment = {VARIABLE: str(tmp_path), "DS_ACCELERATOR": "cpu", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    failed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240
    )
    assert failed.returncode == 1
    assert "UserError: deepspeed.offload_optimizer=cpu needs DeepSpeed's CPU Adam" in failed.stderr
    assert "Install a C++ compiler and ninja, or choose a deepspeed option without offload." in failed.stderr
