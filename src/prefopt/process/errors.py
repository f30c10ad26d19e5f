"""Errors that the user can fix, and the one place that turns errors of files and the system into them."""

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
"""File-system errors that no program can fix, such as a full disk or a missing permission."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

SHOWN = 100
"""Most characters of a value that a message quotes."""


def shorten(text: str, limit: int = SHOWN) -> str:
    """Cuts a text to `limit` characters, for quoting it in a message."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} letters)"


class UserError(ValueError):
    """A mistake in a setting, a file or the environment.

    The message says what, where, what was found, what is allowed and what to do next. Entry points show it without a
    traceback and exit with code 2 (see `prefopt.distributed.entry`).
    """


class ToldByRank0(UserError):
    """A `UserError` that rank 0 has found and shows; the other ranks end without a message."""


class EndedError(RuntimeError):
    """A run failed for a reason that the message explains completely: shown without a traceback, exit code 1."""


@contextmanager
def explained(path: Path | str, doing: str = "read", remedy: str = "") -> Iterator[None]:
    """Turns errors of reading or writing a file in the block into a `UserError` of one sentence with the path.

    Args:
        path: The file that the block works on; if an error names a file itself, that one is shown instead.
        doing: What failed, as a participle: "read", "written".
        remedy: The next step for the user, as a sentence.

    Raises:
        UserError: In place of OSError, UnicodeError, RecursionError and MemoryError.
    """
    try:
        yield
    except (OSError, UnicodeError, RecursionError, MemoryError) as error:
        raise UserError(f"{describe(error, path, doing)}. {remedy}".rstrip()) from error


def describe(error: BaseException, path: Path | str | None = None, doing: str = "read") -> str:
    """Describes a file's problem in one sentence without its full stop: which file, and what is wrong with it.

    Args:
        error: The error that was raised.
        path: The file to name if the error names none.
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
    """The first line of an error's message; the name of its type if it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
