"""Checks the values in `trainer.extra`, which sets further fields of TRL's configurations."""

import difflib
import json
import math
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from prefopt.config.fields import (
    BOUNDS,
    COMPILERS,
    FORMER_NAMES,
    NOT_REENTRANT,
    RECOMPUTATION,
)
from prefopt.config.overrides import typed
from prefopt.config.trainer import TrainerConfig
from prefopt.process.errors import UserError, shorten

if TYPE_CHECKING:
    from transformers import TrainingArguments

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    dict: "a dict",
}


def check_values(kind: "type[TrainingArguments]", trainer: TrainerConfig) -> None:
    """Refuses values in `trainer.extra` that have a wrong type or range, or no effect with the other settings.

    Args:
        kind: TRL's DPOConfig or SFTConfig.
        trainer: The settings; `check_fields` has accepted the names in its `extra`.

    Raises:
        UserError: A value is refused; the message names its field.
    """
    hints = get_type_hints(kind)
    hints |= {name: hints[former] for name, former in FORMER_NAMES.items() if name not in hints}
    for name, value in trainer.extra.items():
        key = f"trainer.extra.{name}"
        if not _fits(value, hints[name]):
            raise UserError(f"{key}: must be {_describe(hints[name])}, found {shorten(repr(value))}.")
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            raise UserError(f"{key}: must be from {low:,} to {high:,}, found {shorten(str(value))}.")
    _check_compiling(trainer.extra)
    _check_recomputation(trainer)
    _check_offloading(trainer.extra)


def _check_compiling(extra: Mapping[str, Any]) -> None:
    """Refuses a backend or mode of torch.compile that does not exist or would have no effect."""
    backend, mode = extra.get("torch_compile_backend"), extra.get("torch_compile_mode")
    for name, value in (("torch_compile_backend", backend), ("torch_compile_mode", mode)):
        if value is not None and extra.get("torch_compile") is False:
            raise UserError(
                f"trainer.extra.{name}={shorten(value)}: has no effect with trainer.extra.torch_compile=false. "
                "Leave one of them out."
            )
    if backend is not None and backend not in COMPILERS:
        found = shorten(repr(backend))
        raise UserError(f"trainer.extra.torch_compile_backend: must be {' or '.join(COMPILERS)}, found {found}.")
    if mode is None:
        return
    if backend not in (None, "inductor"):
        raise UserError(
            f"trainer.extra.torch_compile_mode={shorten(mode)}: only inductor has modes, and "
            f"trainer.extra.torch_compile_backend={backend}. Leave one of them out."
        )
    from torch._inductor import list_mode_options  # takes a second to import, so only when a mode is given

    if mode not in list_mode_options():
        known = " or ".join(list_mode_options())
        raise UserError(f"trainer.extra.torch_compile_mode: must be {known}, found {shorten(repr(mode))}.")


def _check_recomputation(trainer: TrainerConfig) -> None:
    """Refuses arguments of gradient checkpointing that do not exist or would have no effect."""
    key = "trainer.extra.activation_checkpointing_kwargs"
    found = trainer.extra.get(key.rpartition(".")[2])
    given = json.loads(found) if isinstance(found, str) else found
    if not given:
        return
    if trainer.gradient_checkpointing is False:
        raise UserError(
            f"{key}: has no effect with trainer.gradient_checkpointing=false. Leave it out, or set "
            "trainer.gradient_checkpointing=true."
        )
    for name, value in given.items():
        if name not in RECOMPUTATION:
            near = difflib.get_close_matches(str(name), RECOMPUTATION, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"{key}: has no {shorten(str(name))}. {hint}Allowed: {', '.join(RECOMPUTATION)}.")
        allowed = RECOMPUTATION[name]
        if not any(value == each and type(value) is type(each) for each in allowed):
            few = " or ".join(str(each).lower() for each in allowed)
            words = f"from {allowed[0]} to {allowed[-1]:,}" if name == "every_n_layers" else few
            raise UserError(f"{key}: {name} must be {words}, found {shorten(repr(value))}.")
        if name in NOT_REENTRANT and given.get("use_reentrant") is not False:
            remedy = typed(f"+{key}", {"use_reentrant": False, name: value})
            raise UserError(f"{key}: {name} is read only where use_reentrant is false. Such as {remedy}")


def _check_offloading(extra: Mapping[str, Any]) -> None:
    """Refuses to offload activations from a GPU where there is no GPU."""
    given = extra.get("activation_checkpointing_kwargs")
    arguments = json.loads(given) if isinstance(given, str) else given or {}
    asked = {"activation_offloading": extra.get("activation_offloading")}
    asked["activation_checkpointing_kwargs: offload"] = arguments.get("offload")
    for name, value in asked.items():
        if value:
            import torch

            if not torch.cuda.is_available():
                raise UserError(
                    f"trainer.extra.{name}=true moves activations from a GPU to host memory, and there is no GPU "
                    "here. Leave it out."
                )


def _fits(value: object, hint: Any) -> bool:
    """Returns whether a value has the declared type of a field; text for a dict field must be a JSON object."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if isinstance(value, str) and any((get_origin(each) or each) is dict for each in inner):
            return _is_json_object(value)
        if isinstance(value, str) and (choices := [each for each in inner if _is_enum(each)]):
            return _fits(value, choices[0])
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if hint is Any:
        return True
    if _is_enum(hint):
        return any(value == member.value for member in hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def _is_enum(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _describe(hint: Any) -> str:
    """Describes a type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        closed = [each for each in inner if _is_enum(each)]
        return " or ".join(dict.fromkeys(_describe(each) for each in closed or inner))
    if origin is Literal:
        return " or ".join(str(each).lower() for each in inner)
    if origin is list:
        return f"a list of {_describe(inner[0])}"
    if _is_enum(hint):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return WORDS.get(origin or hint, str(hint))
