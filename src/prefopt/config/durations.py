"""Reads durations such as 90m, 2h or 12:30:00."""

import re

from prefopt.process.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.ASCII)
_WITH_COLONS = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", re.ASCII)


def parse_time_limit(text: str | float | None) -> float | None:
    """Returns run.time_limit in seconds; None for no limit.

    A plain number is refused because it means minutes to SLURM and seconds to most others, and "MM:SS" because it may
    be HH:MM. YAML 1.1 turns an unquoted 12:30:00 into the number 45000, which is refused too.

    Raises:
        UserError: The text has another form, or the time is not above 0.
    """
    if text is None:
        return None
    seconds = None
    plain = str(text).strip().lower()
    if found := _WITH_UNIT.fullmatch(plain):
        seconds = float(found[1]) * _UNITS[found[2]]
    elif (found := _WITH_COLONS.fullmatch(plain)) and (found[1] is None or int(found[2]) < 24):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = float(days * 86400 + hours * 3600 + minutes * 60 + rest)
    if seconds is None or seconds <= 0:
        raise UserError(
            f"run.time_limit: must be a time > 0 such as 45s, 90m, 2h, 1d, 12:30:00 (HH:MM:SS) or 1-12:30:00 "
            f"(D-HH:MM:SS), found {text!r}. A plain number has no unit; in YAML, quote what has colons."
        )
    return seconds
