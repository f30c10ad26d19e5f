"""From settings and examples to a trainer that is whole."""

from typing import TYPE_CHECKING

from prefopt.models.examples import Examples
from prefopt.models.load import build_peft_config, load_model
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.training.algorithm import Algorithm
from prefopt.training.arguments import build_arguments
from prefopt.training.context import RunContext

if TYPE_CHECKING:
    from prefopt.training.durable import DurableTrainer


@phases.of("set_up")
def build_trainer(algorithm: Algorithm, run: RunContext, examples: Examples) -> "DurableTrainer":
    """Loads the models and returns the trainer, which nobody has to add to.

    Raises:
        UserError: The model does not allow what the settings ask for, or TRL, PEFT or transformers refuse it.
    """
    config = run.config
    arguments = build_arguments(algorithm, config, run.directory, run.size)
    is_evaluated = arguments.eval_strategy != "no" or bool(run.own.callbacks)  # which may ask for it at any step
    try:
        return algorithm.trainer(
            run=run,
            model=load_model(config.model, config.peft.method),
            args=arguments,
            train_dataset=examples.tokenized.train,
            eval_dataset=examples.tokenized.held_out if is_evaluated else None,
            processing_class=examples.tokenizer,
            peft_config=build_peft_config(config.peft, config.model),
            **algorithm.parts(config, examples.tokenizer),
        )
    except UserError:
        run.directory.discard_if_empty()
        raise
    except (ValueError, NotImplementedError) as error:
        run.directory.discard_if_empty()
        raise UserError(f"these settings cannot be trained: {error}") from error
