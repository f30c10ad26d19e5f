"""What a run gives to its trainer."""

from dataclasses import dataclass, field

from rich.console import Console

from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed.preemption import StopRequest
from prefopt.runs.directory import RunDirectory
from prefopt.training.fit import Fit
from prefopt.training.own_code import OwnCode


@dataclass(frozen=True)
class RunContext:
    """All that a trainer must know of its run when it is built.

    Attributes:
        config: The settings.
        directory: Where the run lives; it is first written to after the trainer is built.
        stop: Whether somebody asks the run to stop.
        console: Where progress is shown.
        size: How the examples of an optimizer step are divided.
        kept_fit: What an earlier attempt of this run found to fit on the device; None before there was one.
        own: The user's own loss and callbacks.
    """

    config: TrainConfig
    directory: RunDirectory
    stop: StopRequest
    console: Console
    size: StepSize
    kept_fit: Fit | None = None
    own: OwnCode = field(default_factory=OwnCode)
