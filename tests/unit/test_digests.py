"""Checksums computed while a checkpoint is written: of what was written, and of nothing else."""

import errno
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from prefopt.storage.digests import BLOCK_BYTES, Digester, HashingStream
from prefopt.storage.files import hash_file
from prefopt.storage.sealed import find_damage

LARGE = BLOCK_BYTES // 4 + 3
"""Numbers of a float32 tensor that is hashed aside."""


def state(numbers: int) -> dict:
    torch.manual_seed(0)
    return {"step": 3, "moments": [torch.randn(numbers), torch.randn(2, numbers).T, torch.empty(0)]}


@pytest.mark.parametrize("numbers", [1, LARGE], ids=["small", "large"])
def test_a_digest_is_that_of_the_file(tmp_path: Path, numbers: int) -> None:
    with Digester(tmp_path) as digester:
        with digester.watching():
            torch.save(state(numbers), str(tmp_path / "optimizer.pt"))
        found = digester.finish()
    path = tmp_path / "optimizer.pt"
    assert found == {"optimizer.pt": {"size": path.stat().st_size, "sha256": hash_file(path)}}


def test_a_watched_file_loads_as_it_was_saved(tmp_path: Path) -> None:
    with Digester(tmp_path) as digester, digester.watching():
        torch.save(state(LARGE), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", mmap=True)
    assert loaded["step"] == 3
    assert all(map(torch.equal, loaded["moments"], state(LARGE)["moments"]))


def test_finished_files_are_digested_as_when_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for name in ("model.safetensors", "part/0.bin"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    with Digester(tmp_path) as digester:
        digester.begin(["model.safetensors", "part/0.bin"])
        found = digester.finish()
    assert find_damage(tmp_path, found) is None
    assert set(found) == {"model.safetensors", "part/0.bin"}


def test_what_the_file_system_lost_is_not_what_was_digested(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    with Digester(tmp_path) as digester:
        with digester.watching():
            torch.save(state(LARGE), path)
        found = digester.finish()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert find_damage(tmp_path, found) == "optimizer.pt has another checksum"


def test_a_file_that_is_shorter_than_what_was_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_end(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr("prefopt.storage.digests.bring_to_disk", lose_the_end)
    with Digester(tmp_path) as digester:
        with digester.watching():
            torch.save(state(1), tmp_path / "optimizer.pt")
        with pytest.raises(OSError, match="though"):
            digester.finish()


def test_saves_elsewhere_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    buffer = io.BytesIO()
    with Digester(tmp_path / "checkpoint") as digester:
        with digester.watching():
            torch.save(state(1), tmp_path / "elsewhere.pt")
            torch.save(state(1), buffer)
        assert digester.finish() == {}
    assert torch.load(tmp_path / "elsewhere.pt")["step"] == 3
    assert buffer.getbuffer().nbytes


def test_torch_save_is_itself_again_after_an_error(tmp_path: Path) -> None:
    original = torch.save
    with Digester(tmp_path) as digester, pytest.raises(FileNotFoundError), digester.watching():
        torch.save(state(1), tmp_path / "absent" / "optimizer.pt")
    assert torch.save is original


class FullDisk(io.BytesIO):
    def write(self, block: object) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("size", [1, BLOCK_BYTES])
def test_a_block_that_cannot_be_written_is_the_writers_error(size: int) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="No space left"):
        HashingStream(FullDisk(), pool).write(bytes(size))


@pytest.mark.parametrize("num_values", [10, 2**20])
def test_a_full_disk_is_told_in_the_words_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_values: int
) -> None:
    class Full(io.BytesIO):
        def write(self, block: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with Digester(tmp_path) as digester, digester.watching(), pytest.raises(OSError, match="No space left on device"):
        torch.save({"values": torch.zeros(num_values)}, tmp_path / "state.pt")
