"""The user's own code that takes part in training: named in the settings, or handed to `prefopt.train`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.config.checks import check
from prefopt.config.load import TRAIN, from_dict
from prefopt.config.plain import as_dict, find_strays
from prefopt.config.ranges import require
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError, first_line, shorten
from prefopt.process.named_code import find_code
from prefopt.process.ranks import Launch

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOSS, CALLBACKS = "algorithm.loss_function", "trainer.callbacks"


@dataclass(frozen=True)
class OwnCode:
    """What of the user's is called in training, on every rank.

    Attributes:
        loss: From the log-probs of pairs to a loss for each of them; None: the loss is TRL's.
        callbacks: Instances of transformers' `TrainerCallback`.
    """

    loss: Callable[[Any], Any] | None = None
    callbacks: tuple[Any, ...] = ()


def with_names(config: TrainConfig, own: OwnCode) -> TrainConfig:
    """A checked copy of a configuration that also names what was handed over: it is part of what the run computes.

    Raises:
        UserError: The configuration has a mistake, or the algorithm takes no loss.
    """
    for stray in find_strays(config):
        raise UserError(TRAIN.unknown(stray))
    values = as_dict(config)
    require(config.run.name is not None, "run.name: must be a name; load_config chooses one where none is given.")
    names = config.trainer.callbacks
    require(isinstance(names, list), f"{CALLBACKS}: must be a list of module:Class, found {shorten(repr(names))}.")
    if own.loss is not None:
        algorithm = values["algorithm"]
        require("loss_function" in algorithm, f"loss: algorithm={algorithm['name']} takes none. Set algorithm=dpo.")
        found = algorithm["loss_function"]
        require(found is None, f"loss: {LOSS}={found} names another one. Leave one of them out.")
        algorithm["loss_function"] = _name_of(own.loss)
    values["trainer"]["callbacks"] += [_name_of(callback) for callback in own.callbacks]
    named = from_dict(values, "the configuration")
    check(named, Launch.of_this_process())
    return named


def load_own_code(config: TrainConfig, handed: OwnCode) -> OwnCode:
    """What the settings name, imported unless it was handed over; the current folder can be imported from.

    Args:
        config: The settings, which name what was handed over too, after all else.
        handed: What a caller in Python has given.

    Raises:
        UserError: A name leads nowhere, or to something else than a loss or a callback.
    """
    loss, name = handed.loss, getattr(config.algorithm, "loss_function", None)
    if loss is None and name is not None:
        loss = find_code(LOSS, name)
    require(loss is None or callable(loss), f"{LOSS}={name}: must be a function, found {type(loss).__name__}.")
    names = config.trainer.callbacks
    num_named = len(names) - len(handed.callbacks)
    found = [*(find_code(CALLBACKS, each) for each in names[:num_named]), *handed.callbacks]
    return OwnCode(loss, tuple(_build(name, each) for name, each in zip(names, found, strict=True)))


def _name_of(own: object) -> str:
    """A function or a class, or the class of an instance, as the settings name it."""
    kind = own if hasattr(own, "__qualname__") else type(own)
    return f"{kind.__module__}:{kind.__qualname__}"


def _build(name: str, callback: object) -> "TrainerCallback":
    """The callback itself, of a class an instance.

    Raises:
        UserError: It is no callback, or its class needs arguments.
    """
    from transformers import TrainerCallback

    try:
        built = callback() if isinstance(callback, type) else callback
    except Exception as error:
        raise UserError(
            f"{CALLBACKS}={name}: cannot be built without arguments ({type(error).__name__}: {first_line(error)}). "
            "Give its __init__ defaults, or hand an instance to prefopt.train(config, callbacks=[...])."
        ) from error
    what = f"{CALLBACKS}={name}: must be a class that extends transformers.TrainerCallback"
    require(isinstance(built, TrainerCallback), f"{what}, found {type(built).__name__}.")
    return built
