"""What the value of a setting may be, said in one way."""

from typing import Any

from omegaconf import BooleanNode, IntegerNode
from omegaconf.errors import ValidationError

from prefopt.choices import AUTO
from prefopt.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def or_auto(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting that is `auto` or of a type, converted to that type as OmegaConf converts others."""
    if value == AUTO:
        return AUTO
    try:
        return (BooleanNode if kind is bool else IntegerNode)().validate_and_convert(value)
    except ValidationError as error:
        allowed = "true, false" if kind is bool else "a whole number, null"
        raise UserError(f"{name}: must be {allowed} or auto, found {value!r}.") from error
