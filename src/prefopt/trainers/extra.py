"""`trainer.extra`: the values that further fields of TRL's configurations take, and the fields that are refused."""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prefopt.errors import UserError, shorten
from prefopt.trainers.fields import BOUNDS, PASSED_TO_SFT, REFUSED, SET_BY

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    dict: "a dict",
}


def check_extra(kind: type[Any], extra: Mapping[str, Any]) -> None:
    """Refuses fields that prefopt sets itself, that TRL has not, or that have no effect, and values that are none.

    Args:
        kind: TRL's DPOConfig or SFTConfig.
        extra: `trainer.extra`.

    Raises:
        UserError: With the field.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    hints = get_type_hints(kind)
    for name, value in extra.items():
        key = f"trainer.extra.{name}"
        if name in REFUSED:
            raise UserError(f"{key}: not available, because {REFUSED[name]}.")
        if name in SET_BY:
            raise UserError(f"{key}: prefopt sets this field itself. Use {SET_BY[name]}.")
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"See the fields of TRL's {kind.__name__}."
            raise UserError(f"{key}: {kind.__name__} has no such field. {hint}")
        if name in PASSED_TO_SFT and kind.__name__ != "SFTConfig":
            raise UserError(f"{key}: not available, because {PASSED_TO_SFT[name]}.")
        if not _fits(value, hints[name]):
            raise UserError(f"{key}: must be {_describe(hints[name])}, found {shorten(repr(value))}.")
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            raise UserError(f"{key}: must be from {low:,} to {high:,}, found {shorten(str(value))}.")


def _fits(value: Any, hint: Any) -> bool:
    """True for a value of the type that a dataclass declares; text where a dict may stand must be one in JSON."""
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


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _describe(hint: Any) -> str:
    """The type in words."""
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
