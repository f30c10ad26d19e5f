"""SHA-256 of a checkpoint's files, most of it computed while they are written instead of by reading them again."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import torch

from prefopt.storage.files import bring_to_disk
from prefopt.storage.sealed import Digests, digest

BLOCK_BYTES = 2**20
"""Blocks from this size on are hashed by another thread while they are written."""


class Digester:
    """Hashes what this process writes to a folder; as a context manager it ends its threads.

    Args:
        folder: The checkpoint that is being written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun: dict[str, Future[Digests]] = {}
        self._of_files, self._of_blocks = ThreadPoolExecutor(1, "digest"), ThreadPoolExecutor(1, "digest-block")

    def __enter__(self) -> "Digester":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._of_files.shutdown(cancel_futures=True)
        self._of_blocks.shutdown(cancel_futures=True)

    def begin(self, names: Iterable[str]) -> None:
        """Brings finished files to the disk and reads them for their digests, aside, while others are written."""
        for name in names:
            self._begun[name] = self._of_files.submit(digest, self._folder, [name])

    def finish(self) -> Digests:
        """Digests of all files that were begun or watched; they are on the disk then.

        Raises:
            OSError: One could not be read, is not what was written, or could not be brought to the disk.
        """
        return {name: entry for digests in self._begun.values() for name, entry in digests.result().items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Lets `torch.save` of the block, whoever calls it, hash what it writes to the folder on its way there."""
        original = torch.save

        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            path = Path(f) if isinstance(f, str | os.PathLike) else None
            if path is None or not path.is_relative_to(self._folder):
                original(obj, f, *args, **kwargs)
                return
            with path.open("wb") as opened:
                stream = HashingStream(opened, self._of_blocks)
                try:
                    original(obj, cast(Any, stream), *args, **kwargs)
                except RuntimeError as error:  # torch does not say what the file system said
                    raise stream.error or error from error
            name = str(path.relative_to(self._folder))
            self._begun[name] = self._of_files.submit(self._complete, name, stream)

        torch.save = save
        try:
            yield
        finally:
            torch.save = original

    def _complete(self, name: str, stream: "HashingStream") -> Digests:
        path = self._folder / name
        bring_to_disk(path)
        size = path.stat().st_size
        if size != stream.num_bytes:
            raise OSError(f"{path} has {size} bytes, though {stream.num_bytes} were written")
        return {name: {"size": size, "sha256": stream.hexdigest()}}


class HashingStream:
    """A file to write to, whose blocks are hashed at the same time.

    A digest of what was written, and not of what a file then holds, also finds what is lost in between.
    """

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None
        """Why the file could not be written; None while it can be."""

    def write(self, block: Any) -> int:
        """Writes all of a block; returns its size."""
        view = memoryview(block).cast("B")
        try:
            if view.nbytes < BLOCK_BYTES:
                self._sha256.update(view)
                self._file.write(view)
            else:
                self._write_large(view)
        except OSError as error:
            self.error = error
            raise
        self.num_bytes += view.nbytes
        return view.nbytes

    def _write_large(self, view: memoryview) -> None:
        hashed = self._pool.submit(self._sha256.update, view)
        try:
            self._file.write(view)
        finally:
            hashed.result()  # the block is its owner's again

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        """Of all that was written."""
        return self._sha256.hexdigest()
