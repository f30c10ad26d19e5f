"""Estimates and counts as text: one place decides rounding, signs and units."""

import math
from dataclasses import dataclass
from typing import Any

SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class Unit:
    """How a value is written. `decimals=None` keeps three significant digits."""

    scale: float = 1.0
    decimals: int | None = None
    prefix: str = ""
    suffix: str = ""
    signed: bool = False


PERCENT = Unit(scale=100, decimals=1, suffix=" %")
POINTS = Unit(scale=100, decimals=1, suffix=" points", signed=True)
NUMBER = Unit()
CHANGE = Unit(signed=True)
RATIO = Unit(prefix="\u00d7 ")


@dataclass(frozen=True)
class Cell:
    """One number ready to print: its value with the unit, its 95 % interval without, and its n."""

    value: str = ""
    interval: str | None = None
    num: str | None = None

    @property
    def short(self) -> str:
        """Value and interval on one line: `95.0 % (89.7 to 97.7)`."""
        return f"{self.value} ({self.interval})" if self.interval else self.value

    @property
    def text(self) -> str:
        """The cell on one line: `95.0 % (89.7 to 97.7; n 132)`."""
        details = "; ".join(part for part in (self.interval, f"n {self.num}" if self.num else None) if part)
        return f"{self.value} ({details})" if details else self.value


NOT_MEASURED = Cell("not measured")
NOT_APPLICABLE = Cell()


def cell(estimate: dict[str, Any] | None, unit: Unit) -> Cell:
    """Formats `{"value", "ci95", "n"}`; the interval is rounded like the value."""
    if not is_measured(estimate):
        return NOT_MEASURED
    assert estimate is not None
    value = estimate["value"]
    bounds = interval(estimate)
    num = estimate.get("n")
    decimals = _decimals([value, *(bounds or ())], unit)
    return Cell(
        value=unit.prefix + _fixed(value, decimals, unit) + unit.suffix,
        interval=" to ".join(_fixed(bound, decimals, unit) for bound in bounds) if bounds else None,
        num=None if num is None else count(num),
    )


def is_measured(estimate: dict[str, Any] | None) -> bool:
    """Whether the estimate holds a value."""
    return estimate is not None and estimate.get("value") is not None


def interval(estimate: dict[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval, or None unless both bounds are known."""
    bounds = estimate.get("ci95")
    if bounds is None or None in bounds:
        return None
    low, high = bounds
    return float(low), float(high)


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def number(value: float) -> str:
    """A number with three significant digits."""
    return _fixed(value, _decimals([value], NUMBER), NUMBER)


def duration(seconds: float) -> str:
    """A time span in its two largest units: `1 h 07 min`, `2 min 05 s`, `8.4 s`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _decimals(values: list[float], unit: Unit) -> int:
    if unit.decimals is not None:
        return unit.decimals
    largest = max(abs(value) for value in values)
    if largest == 0:
        return SIGNIFICANT_DIGITS - 1
    return max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest)))


def _fixed(value: float, decimals: int, unit: Unit) -> str:
    scaled = value * unit.scale
    if decimals > 6:
        return f"{scaled:{'+' if unit.signed else ''}.{SIGNIFICANT_DIGITS - 1}e}"
    rounded = round(scaled, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if unit.signed and rounded else ''},.{decimals}f}"
