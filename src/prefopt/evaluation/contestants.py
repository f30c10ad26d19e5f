"""The models under test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.config.schema import TrainConfig
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.models.load import load_model, load_tuned, straight_to_device


@dataclass(frozen=True)
class Contestant:
    """A model under test.

    Attributes:
        name: Its key in the blocks of report.json.
        folder: A whole model, or an adapter over the base; None: the base that the configuration names.
    """

    name: str
    folder: Path | None = None

    @property
    def is_base(self) -> bool:
        """The others are compared with it."""
        return self.folder is None

    def load(self, config: TrainConfig) -> Any:
        """The model, on the device that measures it."""
        if self.folder is None:
            return load_model(config.model, config.peft.method, straight_to_device())
        return load_tuned(config, self.folder)


def of_run(model: Path) -> list[Contestant]:
    """The contestants of a run: the model that it saved in this folder, and the base."""
    return [Contestant(TUNED, model), Contestant(BASE)]
