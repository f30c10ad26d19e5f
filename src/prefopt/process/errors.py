"""The errors that are the user's to mend, and the one place that makes them of what systems and libraries raise."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EMFILE,
        errno.ESTALE,
    }
)
"""What a file system answers that no program can do anything about."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

SHOWN = 100
"""Letters of a value that a message repeats."""


def shorten(text: str, limit: int = SHOWN) -> str:
    """A value, or another program's words, as a message repeats them."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} letters)"


class UserError(ValueError):
    """A mistake in a setting, a file or the environment.

    The message says what, where, what was found, what is allowed and what to do next. Entry points show it without a
    traceback and exit with code 2 (see `prefopt.distributed.entry`).
    """


class ToldByRank0(UserError):
    """A mistake that rank 0 has found and shows; the other ranks end in silence."""


class EndedError(RuntimeError):
    """A run that ended badly for a reason that its message tells whole: shown without a traceback, exit code 1."""


@contextmanager
def explained(path: Path | str, doing: str = "read", remedy: str = "") -> Iterator[None]:
    """Turns what a file system, or the content of a file, does to the block into one sentence with the path.

    Args:
        path: What the block works on; an error that names a file of its own names that instead.
        doing: What cannot be done then, as a participle: "read", "written".
        remedy: The next step, a sentence.

    Raises:
        UserError: In place of OSError, UnicodeError, RecursionError and MemoryError.
    """
    try:
        yield
    except (OSError, UnicodeError, RecursionError, MemoryError) as error:
        raise UserError(f"{describe(error, path, doing)}. {remedy}".rstrip()) from error


def describe(error: BaseException, path: Path | str | None = None, doing: str = "read") -> str:
    """One sentence without its full stop: which file, and what is the matter with it.

    Args:
        error: What was raised.
        path: Named where the error names no file.
        doing: As for `explained`.
    """
    named = getattr(error, "filename", None)
    where = named if isinstance(named, str) and named else "a file" if path is None else path
    if isinstance(error, OSError):
        return f"{where}: cannot be {doing} ({error.strerror or error})"
    if isinstance(error, UnicodeDecodeError):
        return f"{where}: is no text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
    if isinstance(error, RecursionError):
        return f"{where}: is nested too deeply to be {doing}"
    if isinstance(error, MemoryError):
        return f"{where}: does not fit into memory"
    return f"{where}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
