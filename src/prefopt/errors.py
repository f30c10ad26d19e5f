"""The errors that are the user's to mend."""


class UserError(ValueError):
    """A mistake in a setting, a file or the environment.

    The message says what, where, what was found, what is allowed and what to do next. Entry points show it without a
    traceback and exit with code 2 (see `prefopt.entry`).
    """


class ToldByRank0(UserError):
    """A mistake that rank 0 has found and shows; the other ranks end in silence."""
