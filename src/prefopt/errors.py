"""The one error that is the user's to mend, and how an entry point shows it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a setting, a file or the environment.

    The message says what, where, what was found, what is allowed and what to do next. Entry points show it without a
    traceback and exit with code 2 (see `run_entry`).
    """


def run_entry(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs an entry point. Exit codes: 2 for a `UserError`, 130 for Ctrl-C; other errors keep their traceback."""
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last complete checkpoint", file=sys.stderr)
        sys.exit(130)
