"""Several ranks of a benchmark: torchrun starts them, and each runs `prefopt.train` up to the part to be measured."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

from prefopt import train
from prefopt.distributed import group
from prefopt.training import runner

SHOWN_LINES = 25


def launch(module: str, arguments: list[str], *, ranks: int, **environment: str) -> None:
    """Runs a module on several ranks of this machine, each with one thread unless `OMP_NUM_THREADS` says otherwise.

    Args:
        module: Run by each rank.
        arguments: Of the module.
        ranks: Processes.
        environment: Further environment variables.

    Raises:
        SystemExit: A rank failed; the message ends with what it printed last.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m", module, *arguments]
    defaults = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", *torchrun],
        env={**defaults, **os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        shown = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        raise SystemExit(f"{module} on {ranks} ranks ended with exit code {done.returncode}:\n{shown}")


Work = Callable[[Any], None]


def run_until_training(argv: list[str], work: Work) -> None:
    """Runs `prefopt.train` up to the point where it trains, does `work` instead, and ends there, without a report.

    Args:
        argv: Overrides of `prefopt.train`.
        work: Called on every rank with the trainer that `prefopt.training.training.train` is called with.
    """

    def instead(trainer: Any, *_: Any) -> None:
        work(trainer)
        raise _Done

    with mock.patch.object(runner, "train", instead), suppress(_Done):
        train.main(argv)
    group.stop()


class _Done(BaseException):
    """Ends `prefopt.train` where the benchmark does."""
