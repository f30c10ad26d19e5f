"""Finds an error, or the last line of text, at the end of a log."""

import re
from pathlib import Path

from prefopt.storage.files import read_end

LOG_BYTES = 1 << 16
"""Bytes that are read from the end of a log."""

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)
LOOKS_WRONG = re.compile(
    r"Error\b|Exception\b|\berror:|Segmentation fault|Bus error|\bKilled\b|\bpreflight: (?!.*: fit)", re.ASCII
)
ECHOES = ("srun: error:", "torch.distributed.elastic", "torch/distributed/elastic", "ChildFailedError")
"""Parts of lines that only report the failure of another process, whose own error says more."""


def find_error(log: Path) -> str:
    """Returns the last line of a log with an error; lines of `ECHOES` only if there is no other. Empty if none."""
    wrong = [line for line in _read_words(log) if LOOKS_WRONG.search(line)]
    telling = [line for line in wrong if not any(echo in line for echo in ECHOES)]
    return (telling or wrong or [""])[-1]


def find_last_line(log: Path) -> str:
    """Returns the last line of a log that is not blank; empty if there is none."""
    return (_read_words(log) or [""])[-1]


def _read_words(log: Path) -> list[str]:
    """Returns the last lines of a log without colour codes; the states of a progress bar become lines of their own."""
    text = ANSI.sub("", read_end(log, LOG_BYTES)[0].decode("utf-8", "replace"))
    return [line.strip() for part in text.split("\n") for line in part.split("\r") if line.strip()]
