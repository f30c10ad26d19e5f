"""The models that an evaluation measures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.models.load import load_model, load_tuned, straight_to_device

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prefopt.evaluation.material import Material


@dataclass(frozen=True)
class Contestant:
    """A model under test.

    Attributes:
        name: Its key in the blocks of report.json.
        folder: Folder of a whole model, or of an adapter on the base; None: the base model of the configuration.
        model: Settings of a model that no run has made, in place of a folder.
        tokenizer: Its own, of the base's vocabulary; None: the base's.
        material: What it is asked where its own tokenizer writes prompts in another way; None: what all are asked.
    """

    name: str
    folder: Path | None = None
    model: ModelConfig | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    material: "Material | None" = None

    @property
    def is_base(self) -> bool:
        """Whether this is the base model, with which the others are compared."""
        return self.name == BASE

    def load(self, config: TrainConfig) -> "PreTrainedModel | PeftModel":
        """Loads the model onto this process's device."""
        if self.model is not None:
            return load_model(self.model, placement=straight_to_device())
        if self.folder is None:
            return load_model(config.model, config.peft.method, straight_to_device())
        return load_tuned(config, self.folder)


def of_run(model: Path) -> list[Contestant]:
    """Returns the contestants of a run: the tuned model saved in folder `model`, and the base."""
    return [Contestant(TUNED, model), Contestant(BASE)]
