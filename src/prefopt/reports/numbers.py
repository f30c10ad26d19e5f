"""Formats estimates and counts as text: rounding, signs and units are decided here alone."""

import math
from dataclasses import dataclass
from typing import TypeGuard

from prefopt.evaluation.metrics import NUMBER, Unit
from prefopt.evaluation.statistics import Estimate

SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class Cell:
    """A number ready to print.

    Attributes:
        value: The value with its unit.
        interval: Its 95 % interval without the unit; None if it has none.
        num: How many examples are behind it.
        num_prompts: How many prompts these belong to, where several belong to one.
    """

    value: str = ""
    interval: str | None = None
    num: str | None = None
    num_prompts: str | None = None

    @property
    def n(self) -> str:
        """The examples, and their prompts where these are fewer: `132`, or `132 of 66 prompts`."""
        prompts = "1 prompt" if self.num_prompts == "1" else f"{self.num_prompts} prompts"
        return (self.num or "") if self.num_prompts is None else f"{self.num} of {prompts}"

    @property
    def short(self) -> str:
        """Value and interval on one line: `95.0 % (89.7 to 97.7)`."""
        return f"{self.value} ({self.interval})" if self.interval else self.value

    @property
    def text(self) -> str:
        """The cell on one line: `95.0 % (89.7 to 97.7; n 132)`."""
        details = "; ".join(part for part in (self.interval, f"n {self.n}" if self.num else None) if part)
        return f"{self.value} ({details})" if details else self.value


NOT_MEASURED, NOT_FINITE = Cell("not measured"), Cell("not finite")
NOT_APPLICABLE = Cell()


def cell(estimate: Estimate | None, unit: Unit) -> Cell:
    """Formats an estimate; the interval is rounded like the value."""
    if not is_measured(estimate):
        return NOT_FINITE if is_broken(estimate) else NOT_MEASURED
    value, num, prompts, bounds = estimate.value, estimate.n, estimate.num_prompts, interval(estimate)
    half_width = (bounds[1] - bounds[0]) / 2 if bounds else 0.0
    decimals = _decimals(max(abs(value), half_width), unit)
    return Cell(
        value=unit.prefix + _fixed(value, decimals, unit) + unit.suffix,
        interval=" to ".join(_fixed(bound, decimals, unit) for bound in bounds) if bounds else None,
        num=None if num is None else count(num),
        num_prompts=None if prompts in (None, num) or num is None else count(prompts),
    )


def is_measured(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Whether the estimate holds a finite value."""
    return estimate is not None and math.isfinite(estimate.value)


def is_broken(estimate: Estimate | None) -> bool:
    """Whether it was measured on examples, and is no finite number."""
    return estimate is not None and bool(estimate.n) and not math.isfinite(estimate.value)


def interval(estimate: Estimate) -> tuple[float, float] | None:
    """Returns the 95 % interval, or None unless both bounds are finite."""
    is_whole = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return (estimate.low, estimate.high) if is_whole else None


def count(value: int) -> str:
    """Formats a whole number with thousands separators."""
    return f"{value:,}"


def number(value: float) -> str:
    """Formats a number without unit, rounded to `SIGNIFICANT_DIGITS`."""
    return _fixed(value, _decimals(abs(value), NUMBER), NUMBER)


def duration(seconds: float) -> str:
    """Formats a time span in its two largest units: `1 h 07 min`, `2 min 05 s`, `8.4 s`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(iso: str) -> str:
    """Formats an ISO 8601 time in UTC, to the minute: `2026-11-26 09:30 UTC`."""
    return f"{iso[:16].replace('T', ' ')} UTC"


def _decimals(size: float, unit: Unit) -> int:
    if unit.decimals is not None:
        return unit.decimals
    if size == 0:
        return SIGNIFICANT_DIGITS - 1
    digits = SIGNIFICANT_DIGITS if size >= 0.1 else SIGNIFICANT_DIGITS - 1
    return max(0, digits - 1 - math.floor(math.log10(size)))


def _fixed(value: float, decimals: int, unit: Unit) -> str:
    scaled = value * unit.scale
    if decimals > 6:
        return f"{scaled:{'+' if unit.signed else ''}.{SIGNIFICANT_DIGITS - 2}e}"
    rounded = round(scaled, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if unit.signed and rounded else ''},.{decimals}f}"
