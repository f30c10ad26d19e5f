"""Computes the SHA-256 of a checkpoint's files, mostly while they are written, to avoid reading them again."""

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
"""Blocks of at least this size are hashed by another thread while they are written."""


class Digester:
    """Hashes the files that this process writes to a folder. Context manager: ends its threads on exit.

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
        """Starts to flush finished files to the disk and to hash them, in a thread, while other files are written."""
        for name in names:
            self._begun[name] = self._of_files.submit(digest, self._folder, [name])

    def finish(self) -> Digests:
        """Waits for and returns the digests of all files that were begun or watched; the files are on the disk then.

        Raises:
            OSError: A file could not be read or flushed to the disk, or is not what was written.
        """
        return {name: entry for digests in self._begun.values() for name, entry in digests.result().items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Makes every `torch.save` in the block hash what it writes to the folder while it writes."""
        original = torch.save

        def save(obj: object, f: Any, *args: Any, **kwargs: Any) -> None:
            path = Path(f) if isinstance(f, str | os.PathLike) else None
            if path is None or not path.is_relative_to(self._folder):
                original(obj, f, *args, **kwargs)
                return
            with path.open("wb") as opened:
                stream = HashingStream(opened, self._of_blocks)
                try:
                    original(obj, cast(Any, stream), *args, **kwargs)
                except RuntimeError as error:  # torch hides the error of the file system
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
    """A writable file that hashes its blocks while they are written.

    The digest is of the written data, not of the file's content, so it also finds data lost on the way to the disk.
    """

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None
        """The error if the file could not be written; else None."""

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
            hashed.result()  # only now may the caller change the block

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        """Returns the SHA-256 (hex) of everything that was written."""
        return self._sha256.hexdigest()
