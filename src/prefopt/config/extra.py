"""`trainer.extra`: which further fields of TRL's configurations may be set."""

import difflib
from collections.abc import Mapping
from typing import Any

from prefopt.config.choices import AlgorithmName
from prefopt.config.fields import (
    FORMER_NAMES,
    PASSED,
    PASSED_TO_ONE,
    REFUSED,
    SET_BY,
)
from prefopt.process.errors import UserError


def check_fields(algorithm: AlgorithmName, extra: Mapping[str, Any]) -> None:
    """Refuses fields that prefopt sets itself, that TRL does not have, or that have no effect. Does not import TRL.

    Raises:
        UserError: A field is refused; the message names it.
    """
    for name in extra:
        key = f"trainer.extra.{name}"
        if name in REFUSED:
            raise UserError(f"{key}: not available, because {REFUSED[name]}.")
        if name in SET_BY:
            raise UserError(f"{key}: prefopt sets this field itself. Use {SET_BY[name]}.")
        if name not in (*PASSED, *PASSED_TO_ONE):
            kind = f"{algorithm.name.upper()}Config"
            near = difflib.get_close_matches(str(name), [*PASSED, *PASSED_TO_ONE, *SET_BY, *REFUSED], n=1)
            hint = f"Did you mean {near[0]}?" if near else f"See the fields of TRL's {kind}."
            raise UserError(f"{key}: {kind} has no such field. {hint}")
        only, reason = PASSED_TO_ONE.get(name, (algorithm.value, ""))
        if only != algorithm.value:
            raise UserError(f"{key}: not available, because {reason}.")


def named_as_installed(kind: type[Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`trainer.extra` with each field under its name in the installed version of TRL's configuration."""
    known = getattr(kind, "__dataclass_fields__", {})
    return {name if name in known else FORMER_NAMES.get(name, name): value for name, value in extra.items()}
