"""Output that never ends a command: when a stream can no longer be written (closed pipe, full disk), work goes on.

    with lasting_output():
        keep_in(run.path)
        ...

Text that can no longer be printed goes to the run's `output.log`. The traceback of an unexpected error goes to its
`error.log`, or, if there is no run, to a file whose path is shown.
"""

import os
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast

from prefopt.process.errors import first_line
from prefopt.process.paths import cache_folder
from prefopt.process.ranks import rank, world_size

OUTPUT, ERRORS = "output.log", "error.log"
REMEMBERED_CHARACTERS = 2**16
"""Most characters of unprinted text, its last ones, that are kept in memory until the run's folder exists."""

_folder: Path | None = None


def keep_in(run: Path) -> None:
    """Sets the folder of this process's run, for `output.log` and `error.log`; it need not exist yet."""
    global _folder
    _folder = run


@contextmanager
def lasting_output() -> Iterator[None]:
    """Keeps writes to stdout and stderr within the block from raising errors."""
    streams, rest = (sys.stdout, sys.stderr), _Rest()
    if None in streams:  # closed before this process began: Python prints nothing then
        yield
        return
    sys.stdout = cast(TextIO, LastingStream(streams[0], "standard output", rest))
    sys.stderr = cast(TextIO, LastingStream(streams[1], "standard error", rest))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


class LastingStream:
    """A text stream that keeps accepting text when its reader is gone or its disk is full.

    Args:
        stream: Receives the text as long as it can be written.
        name: Name of the stream in messages.
        rest: Receives the text after that.
    """

    def __init__(self, stream: TextIO, name: str, rest: "_Rest") -> None:
        self._stream, self._name, self._rest = stream, name, rest
        self._unflushed: list[str] = []
        self._is_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unflushed.append(text)
        if self._is_lost:
            self._divert()
            return len(text)
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        if len(self._unflushed) > 1 and sum(map(len, self._unflushed)) > REMEMBERED_CHARACTERS:
            self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._is_lost:
            try:
                self._stream.flush()
                self._unflushed.clear()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Redirects the stream to /dev/null, for native code too: its buffered text would fail at every flush."""
        self._is_lost = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._rest.begin(f"{self._name} cannot be written any more ({error.strerror}); the command goes on")
        self._divert()

    def _divert(self) -> None:
        self._rest.add("".join(self._unflushed))
        self._unflushed.clear()


class _Rest:
    """Text that could not be printed: written to the run's `output.log`, or kept in memory until its folder exists."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._has_told = False

    def begin(self, why: str) -> None:
        self.add(f"{_now()} {why}\n")

    def add(self, text: str) -> None:
        self._waiting.append(text)
        while sum(map(len, self._waiting)) > REMEMBERED_CHARACTERS and len(self._waiting) > 1:
            self._waiting.popleft()
        if _folder is None or not _folder.is_dir():
            return
        with suppress(OSError), (_folder / OUTPUT).open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(self._waiting))
            self._waiting.clear()
        if not self._has_told and not self._waiting:
            self._has_told = True
            print(f"output that cannot be written any more goes to {_folder / OUTPUT}", file=sys.stderr, flush=True)


def write_traceback(error: BaseException, command: str) -> Path | None:
    """Writes the traceback of an error to a file and returns its path; None if no file can be written.

    Args:
        error: The error; its causes are written too.
        command: The command line that failed.
    """
    whose = f"rank {rank()} of {world_size()}: " if world_size() > 1 else ""
    told = "".join(traceback.format_exception(error))
    text = f"{_now()} {whose}{command}\n{type(error).__name__}: {first_line(error)}\n\n{told}\n"
    for path in _places():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
            return path
        except OSError:
            continue
    return None


def _places() -> list[Path]:
    name = f"prefopt-error-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    of_run = [_folder / ERRORS] if _folder is not None and _folder.is_dir() else []
    return [*of_run, cache_folder() / "errors" / name, Path(tempfile.gettempdir()) / name]


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
