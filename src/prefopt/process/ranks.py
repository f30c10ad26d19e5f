"""What the launcher says about this process."""

import os
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Launch:
    """How a run is started.

    Attributes:
        num_ranks: Its processes.
        is_launched: By torchrun or another launcher, be it the only one.
    """

    num_ranks: int
    is_launched: bool

    @classmethod
    def of_this_process(cls) -> "Launch":
        """As the environment says."""
        return cls(world_size(), is_launched())
