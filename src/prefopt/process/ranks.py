"""Rank of this process and number of ranks, as the launcher's environment variables say."""

import os
from dataclasses import dataclass


def rank() -> int:
    """Index of this process among all of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on rank 0, the one process that writes files and prints."""
    return rank() == 0


def is_launched() -> bool:
    """True if torchrun or another launcher started this process, even if it is the only one."""
    return "LOCAL_RANK" in os.environ


@dataclass(frozen=True)
class Launch:
    """How a run is started.

    Attributes:
        num_ranks: Number of processes.
        is_launched: True if torchrun or another launcher starts them, even a single one.
    """

    num_ranks: int
    is_launched: bool

    @classmethod
    def of_this_process(cls) -> "Launch":
        """How this process was started, from its environment variables."""
        return cls(world_size(), is_launched())
