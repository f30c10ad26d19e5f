"""What training asks of an algorithm; each is described once, in `prefopt.algorithms`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.config.algorithms import AlgorithmConfig
from prefopt.config.schema import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from prefopt.training.durable import DurableTrainer


@dataclass(frozen=True)
class Algorithm:
    """One of TRL's trainers, and how the settings reach it.

    Attributes:
        schema: Its settings, with all that is known of it before torch is loaded.
        trainer: A `DurableTrainer` before TRL's trainer.
        trl_config: TRL's class of training arguments.
        trl_fields: From the configuration to those fields of `trl_config` that only this algorithm has.
        parts: From the configuration and the tokenizer to what its trainer takes beside what all take: a reference
            model, a collator.
    """

    schema: type[AlgorithmConfig]
    trainer: "type[DurableTrainer]"
    trl_config: "type[TrainingArguments]"
    trl_fields: Callable[[TrainConfig], dict[str, Any]]
    parts: "Callable[[TrainConfig, PreTrainedTokenizerBase], dict[str, Any]]"
