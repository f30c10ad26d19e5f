"""Names, words of logs and times, each on one line."""

from prefopt.process.terminal import REPLACEMENT, UNPRINTABLE
from prefopt.state.logs import ANSI


def clean(text: str) -> str:
    """The first line of `text` that says something, without what acts on a terminal."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines()]
    return UNPRINTABLE.sub(REPLACEMENT, next(filter(None, lines), ""))


def clean_name(text: str) -> str:
    """A name on one line: what cannot be printed is replaced, line breaks too."""
    return UNPRINTABLE.sub(REPLACEMENT, text)


def describe_time(seconds: float) -> str:
    """Seconds as 0:47, 1:02:03 or 3d 04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 72:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
