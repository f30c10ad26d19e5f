"""What findings and pages write of estimates, such as `78.0 % [70.1, 84.2]`, with words where there is no number."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from prefopt.evaluation.statistics import Estimate

NOT_FINITE, NOT_MEASURED, NO_INTERVAL = "not finite", "not measured", "[no interval]"


@dataclass(frozen=True, slots=True)
class Form:
    """How numbers of a kind are written.

    Attributes:
        pattern: Format of a number, such as `z.1f`.
        scale: What it is multiplied by first.
        unit: What follows it.
    """

    pattern: str
    scale: float = 1.0
    unit: str = ""


PERCENT, POINTS = Form("z.1f", 100, " %"), Form("+z.1f", 100, " points")
KAPPA, PER_TOKEN, LOG_PROB, WHOLE = Form("z.2f"), Form("z.3f"), Form("+z.2f"), Form("z.0f")
SCORE, CHANGE = Form("z.3g"), Form("+z.3g")


def tell(found: Estimate, form: Form) -> str:
    """Returns a number with its interval, or that it has none: `78.0 % [70.1, 84.2]`, `78.0 % [no interval]`."""
    if not isfinite(found.value):
        return tell_value(found, form)
    bounds = ", ".join(_write(bound, form) for bound in (found.low, found.high))
    return f"{tell_value(found, form)} {f'[{bounds}]' if found.has_interval else NO_INTERVAL}"


def tell_value(found: Estimate, form: Form) -> str:
    """Returns a number without its interval; in words that it was not measured, or is not finite."""
    if not isfinite(found.value):
        return NOT_FINITE if found.n != 0 else NOT_MEASURED
    return f"{_write(found.value, form)}{form.unit}"


def tell_n(found: Estimate) -> str:
    """Returns the number of examples, and of their prompts where these are fewer: `n = 132 of 66 prompts`."""
    prompts = found.num_prompts
    return f"n = {found.n}" + (
        f" of {prompts} prompt{'' if prompts == 1 else 's'}" if prompts not in (None, found.n) else ""
    )


def list_names(names: Iterable[str]) -> str:
    """Returns names as a sentence lists them: `base, tuned and brief`."""
    *first, last = ["", *names]
    return f"{', '.join(first[1:])} and {last}" if first[1:] else last


def _write(value: float, form: Form) -> str:
    return f"{form.scale * value:{form.pattern}}"
