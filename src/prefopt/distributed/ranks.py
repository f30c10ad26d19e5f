"""What the launcher says about this process."""

import os


def rank() -> int:
    """Index of this process among all of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on the one process that writes and talks."""
    return rank() == 0


def is_launched() -> bool:
    """True if torchrun or another launcher started this process, be it the only one."""
    return "LOCAL_RANK" in os.environ
