"""Kills a rank of a run at a point that the environment names; a module for `hooks` of `tests.zygote`.

KILL_IN_STEP is the number of the optimizer step, from 1, and KILL_AT where in it: `forward` (before its second
forward) or `end` (after the optimizer's update, before anything of that step is logged or saved).
"""

import os
import signal
from typing import Any

from prefopt.training.durable import DurableTrainer

STEP, POINT = int(os.environ["KILL_IN_STEP"]), os.environ["KILL_AT"]
num_forwards = 0
training_step, end_step = DurableTrainer.training_step, DurableTrainer.end_step


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_training(self: Any, *args: Any, **kwargs: Any) -> Any:
    global num_forwards
    num_forwards += self.state.global_step + 1 == STEP
    if POINT == "forward" and num_forwards == 2:
        die()
    return training_step(self, *args, **kwargs)


def killed_at_the_end(self: Any, control: Any) -> None:
    if POINT == "end" and self.state.global_step == STEP:
        die()
    end_step(self, control)


DurableTrainer.training_step = killed_in_training  # type: ignore[method-assign]
DurableTrainer.end_step = killed_at_the_end  # type: ignore[method-assign]
