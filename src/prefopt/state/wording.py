"""Formats names, log lines and times for one line of output."""

from prefopt.process.terminal import REPLACEMENT, UNPRINTABLE
from prefopt.state.logs import ANSI


def clean(text: str) -> str:
    """Returns the first line of `text` that is not blank, without terminal control sequences."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines()]
    return UNPRINTABLE.sub(REPLACEMENT, next(filter(None, lines), ""))


def clean_name(text: str) -> str:
    """Returns a name on one line: unprintable characters and line breaks are replaced."""
    return UNPRINTABLE.sub(REPLACEMENT, text)


def describe_time(seconds: float) -> str:
    """Formats seconds as 0:47, 1:02:03 or 3d 04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 72:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
