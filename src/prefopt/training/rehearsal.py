"""Builds optimizer and schedule once before training, to find missing packages and wrong or unused arguments early."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefopt.config.overrides import typed
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError, shorten

if TYPE_CHECKING:
    from transformers import Trainer

HOOKING = ("layerwise", "lomo")
"""Parts of the names of optimizers that attach hooks to the model when they are built, so they are not rehearsed."""
LOW_RANK = ("galore", "apollo")
"""Parts of the names of optimizers that treat some modules specially, so they read `optim_target_modules`."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2},
    "inverse_sqrt": {"timescale": 100},
    "reduce_lr_on_plateau": {"patience": 5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 100},
    "greedy": {"patience": 5},
}
"""Every schedule of transformers, with an example of its arguments; empty if it takes none."""
BUILD_ERRORS = (
    ImportError,
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""The errors that optimizers and schedules raise when they cannot be built."""


def rehearse(trainer: Any, config: TrainConfig) -> None:
    """Builds optimizer and schedule once and drops them; training would build them only when it begins.

    Raises:
        UserError: A package is missing, or an argument is missing, unknown, unused or out of range.
    """
    optim = config.optim
    _refuse_unread(trainer, config)
    if trainer.optimizer_cls_and_kwargs is not None or any(part in optim.name for part in HOOKING):
        return
    given = ", ".join(f"trainer.extra.{name}" for name in ("optim_args", "optim_target_modules"))
    with _told(f"optim.name={optim.name}", f"Its own arguments are {given}"):
        trainer.create_optimizer()
    example = typed("+trainer.extra.lr_scheduler_kwargs", SCHEDULES[optim.scheduler])
    with _told(f"optim.scheduler={optim.scheduler}", f"Its own arguments are given like {example}"):
        trainer.create_scheduler(trainer.total_steps(), trainer.optimizer)
    trainer.optimizer = trainer.lr_scheduler = None


@contextmanager
def _told(setting: str, hint: str) -> Iterator[None]:
    try:
        yield
    except BUILD_ERRORS as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        raise UserError(f"{setting}: cannot be built ({reason}). {hint}.") from error


def _refuse_unread(trainer: "Trainer", config: TrainConfig) -> None:
    """Refuses arguments of the optimizer or the schedule that would have no effect."""
    extra, optim = config.trainer.extra, config.optim
    if extra.get("lr_scheduler_kwargs") and not SCHEDULES[optim.scheduler]:
        raise UserError(
            f"trainer.extra.lr_scheduler_kwargs: optim.scheduler={optim.scheduler} has no arguments of its own. "
            "Leave it out, or set another optim.scheduler."
        )
    if extra.get("optim_target_modules") and not any(part in optim.name for part in LOW_RANK):
        raise UserError(
            f"trainer.extra.optim_target_modules: optim.name={optim.name} does not read it. Leave it out, or use an "
            f"optimizer of {' or '.join(LOW_RANK)}."
        )
    unread = _find_unread(trainer, _parse_arguments(extra.get("optim_args")))
    if unread:
        raise UserError(
            f"trainer.extra.optim_args: optim.name={optim.name} does not read {', '.join(unread)}. Leave it out; what "
            "all optimizers have in common is in the settings of optim."
        )


def _parse_arguments(text: str | None) -> list[str]:
    """Returns the argument names in the text of `optim_args`."""
    pairs = [part.split("=") for part in text.replace(" ", "").split(",")] if text else []
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UserError(
            f"trainer.extra.optim_args: must be <name>=<value>, several of them with commas, found "
            f"{shorten(repr(text))}. Such as optim.name=sgd {typed('+trainer.extra.optim_args', 'momentum=0.9')}"
        )
    return [name for name, _ in pairs]


def _find_unread(trainer: "Trainer", names: list[str]) -> list[str]:
    """Returns the optimizer arguments that change nothing about how it is built, whatever their value."""
    if trainer.optimizer_cls_and_kwargs is not None:
        return names
    if any(part in trainer.args.optim for part in HOOKING):
        return []

    def built(given: str) -> object:
        args = copy.copy(trainer.args)
        args.optim_args = given
        try:
            kind, kwargs = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
        except BUILD_ERRORS:
            return None
        groups = [_without_weights(group) for group in kwargs.get("params", [])]
        return kind, _without_weights(kwargs), groups

    plain = built("")
    return [name for name in names if plain is not None and plain == built(f"{name}=1") == built(f"{name}=2")]


def _without_weights(arguments: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if name != "params"}
