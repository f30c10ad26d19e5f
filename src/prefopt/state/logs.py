"""What the last lines of a log tell: an error, or how far it came."""

import re
from pathlib import Path

from prefopt.storage.files import read_end

LOG_BYTES = 1 << 16
"""Read of the end of a log."""

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)
LOOKS_WRONG = re.compile(
    r"Error\b|Exception\b|\berror:|Segmentation fault|Bus error|\bKilled\b|\bpreflight: (?!.*: fit)", re.ASCII
)
ECHOES = ("srun: error:", "torch.distributed.elastic", "torch/distributed/elastic", "ChildFailedError")
"""In lines that tell that another process failed, whose own words say more."""


def find_error(log: Path) -> str:
    """The last line of a log that tells of an error, rather one that says which; empty if there is none."""
    wrong = [line for line in _read_words(log) if LOOKS_WRONG.search(line)]
    telling = [line for line in wrong if not any(echo in line for echo in ECHOES)]
    return (telling or wrong or [""])[-1]


def find_last_line(log: Path) -> str:
    """The last line of a log that says something; empty if there is none."""
    return (_read_words(log) or [""])[-1]


def _read_words(log: Path) -> list[str]:
    """The last lines of a log, without colours and without what progress bars have overwritten."""
    text = ANSI.sub("", read_end(log, LOG_BYTES)[0].decode("utf-8", "replace"))
    return [line.strip() for part in text.split("\n") for line in part.split("\r") if line.strip()]
