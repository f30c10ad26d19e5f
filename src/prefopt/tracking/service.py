"""The child process in which W&B's client does its work, its service."""

import os
import signal
from contextlib import suppress
from pathlib import Path

NAME = "wandb-core"


def kill_services(parent: int) -> int:
    """Kills the services that process `parent` has started, and returns their number. Only on Linux does it find any.

    A service that waits for a server ignores the end of its parent and SIGTERM (0.31), and would go on sending.
    """
    killed = 0
    for process in find_services(parent):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            killed += 1
    return killed


def find_services(parent: int) -> list[int]:
    """The process ids of the services that process `parent` has started and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        state, its_parent = stat[stat.rindex(")") + 2 :].split()[:2]
        if name == NAME and its_parent == str(parent) and state != "Z":
            found.append(int(folder.name))
    return found
