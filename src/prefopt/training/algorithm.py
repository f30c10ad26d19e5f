"""What training asks of an algorithm; each is described once, in `prefopt.algorithms`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefopt.config.algorithms import AlgorithmConfig


@dataclass(frozen=True)
class Algorithm:
    """One of TRL's trainers, and how the settings reach it.

    Attributes:
        schema: Its settings, with all that is known of it before torch is loaded.
        trl_config: TRL's class of training arguments.
        trl_fields: From the configuration to those fields of `trl_config` that only this algorithm has.
        build: Loads the models and returns the trainer.
    """

    schema: type[AlgorithmConfig]
    trl_config: type[Any]
    trl_fields: Callable[..., dict[str, Any]]
    build: Callable[..., Any]
