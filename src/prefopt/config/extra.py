"""`trainer.extra`: which further fields of TRL's configurations may be set."""

import difflib
from collections.abc import Mapping
from dataclasses import fields

from prefopt.config.algorithms import ALGORITHMS, AlgorithmConfig
from prefopt.config.fields import (
    FORMER_NAMES,
    PASSED,
    REFUSED,
    SET_BY,
)
from prefopt.process.errors import UserError


def check_fields(algorithm: type[AlgorithmConfig], extra: Mapping[str, object]) -> None:
    """Refuses fields that prefopt sets itself, that TRL does not have, or that have no effect. Does not import TRL.

    Raises:
        UserError: A field is refused; the message names it.
    """
    of_one = {name: reason for schema in ALGORITHMS.values() for name, reason in schema.own_fields.items()}
    set_by = {field.name: f"algorithm.{field.name}" for field in fields(algorithm) if field.name != "name"} | SET_BY
    for name in extra:
        key = f"trainer.extra.{name}"
        if name in REFUSED:
            raise UserError(f"{key}: not available, because {REFUSED[name]}.")
        if name in set_by:
            raise UserError(f"{key}: prefopt sets this field itself. Use {set_by[name]}.")
        if name not in (*PASSED, *of_one):
            kind = f"{algorithm.name.value.upper()}Config"
            near = difflib.get_close_matches(str(name), [*PASSED, *of_one, *set_by, *REFUSED], n=1)
            hint = f"Did you mean {near[0]}?" if near else f"See the fields of TRL's {kind}."
            raise UserError(f"{key}: {kind} has no such field. {hint}")
        if name in of_one and name not in algorithm.own_fields:
            raise UserError(f"{key}: not available, because {of_one[name]}.")


def named_as_installed(kind: type, extra: Mapping[str, object]) -> dict[str, object]:
    """`trainer.extra` with each field under its name in the installed version of TRL's configuration."""
    known = getattr(kind, "__dataclass_fields__", {})
    return {name if name in known else FORMER_NAMES.get(name, name): value for name, value in extra.items()}
